"""Whatever stands in a file: it is read, or refused in one sentence; and what once was not stays so.

A short run with the other tests; `make fuzz` gives each target as many examples as FUZZ_EXAMPLES says.
"""

from __future__ import annotations

import bz2
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt import manifest
from bt.image import from_bytes
from emulator.errors import BadImage
from tests.fuzz.mutations import Edit, damage, distort, edits, steps
from tests.fuzz.parsers import TARGETS, check, plan_value, read, target

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
CRASHERS = Path(__file__).parent / "crashers"
"""Files that once were not refused in a sentence, in a directory for each target."""

bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES <= 40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No file of a test gets into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("name", TARGETS)
def test_the_sound_files_are_read_without_complaint(name: str) -> None:
    for seed in target(name).seeds:
        target(name).read(seed)


@pytest.mark.parametrize("name", ["arm64-image", "zimage", "mips-self-extractor"])
def test_each_container_is_known_for_what_it_is(name: str) -> None:
    for seed in target(name).seeds:
        assert from_bytes(seed, name).container == name


@pytest.mark.parametrize("name", TARGETS)
@given(number=st.integers(0, 63), changes=edits)
@bounded
def test_damaged_files_are_read_or_refused_in_a_sentence(name: str, number: int, changes: list[Edit]) -> None:
    seeds = target(name).seeds
    read(name, damage(seeds[number % len(seeds)], changes))


@pytest.mark.parametrize("name", TARGETS)
@given(number=st.integers(0, 63), other=st.sampled_from(TARGETS), at=st.integers(0, 1 << 20))
@bounded
def test_files_that_begin_as_one_kind_and_go_on_as_another_are_too(name: str, number: int, other: str, at: int) -> None:
    first, second = (target(kind).seeds[number % len(target(kind).seeds)] for kind in (name, other))
    at %= min(len(first), 0x800)
    read(name, first[:at] + second)


@given(changes=steps)
@bounded
def test_distorted_plans_are_read_or_refused_in_a_sentence(changes: list[tuple[str, list[int], int]]) -> None:
    value = distort(plan_value(), changes)
    read("plan", json.dumps(value).encode("utf-8", "surrogatepass"))


def manifest_value() -> Any:
    """A sound manifest as plain values."""
    data = target("manifest").seeds[0]
    return json.loads(bz2.decompress(data) if data.startswith(b"BZh") else data)


def as_manifest(value: Any) -> bytes:
    """A manifest's section of plain values."""
    text = json.dumps(value).encode()
    return bz2.compress(text) if target("manifest").seeds[0].startswith(b"BZh") else text


@given(changes=steps)
@bounded
def test_distorted_manifests_are_read_or_refused_in_a_sentence(changes: list[tuple[str, list[int], int]]) -> None:
    read("manifest", as_manifest(distort(manifest_value(), changes)))


LONG = ["x" * 100] * 100


@pytest.mark.parametrize(
    "change",
    [
        {"original_size": float("inf")},
        {"appended_size": float("nan")},
        {"format": {"plan": LONG}},
        {"format": "9" * 5000},
        {"plan": {"sites": LONG}},
        {"plan": LONG},
        {"header": "é" * 128},
        {"container": None, "header": "00" * 63},
    ],
    ids=str,
)
def test_manifests_that_once_were_not_are_refused_in_a_sentence(change: dict[str, Any]) -> None:
    with pytest.raises(BadImage) as caught:
        manifest.parse(as_manifest({**manifest_value(), **change}), "file")
    check(caught.value)


def test_a_manifest_that_unpacks_to_more_than_any_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where manifests are packed: a bomb of spaces in front of a sound one."""
    if not target("manifest").seeds[0].startswith(b"BZh"):
        pytest.skip("manifests are not packed")
    monkeypatch.setattr(manifest, "_LARGEST", 1 << 20)
    bomb = bz2.compress(b" " * (1 << 22))
    with pytest.raises(BadImage) as caught:
        manifest.parse(bomb, "file")
    check(caught.value)


@given(data=st.binary(max_size=600), name=st.sampled_from(TARGETS))
@bounded
def test_noise_is_refused_in_a_sentence(data: bytes, name: str) -> None:
    read(name, data)


def crashers() -> list[Path]:
    return sorted(file for file in CRASHERS.glob("*/*") if file.is_file())


@pytest.mark.parametrize("file", crashers(), ids=lambda file: f"{file.parent.name}-{file.name}")
def test_what_once_got_through_is_refused_in_a_sentence(file: Path) -> None:
    read(file.parent.name, file.read_bytes())
