"""Guests in the cache: found whole or refused, replaced at one stroke, never downloaded by looking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bt import guest_modules, guests
from bt.debian import Apt, Package
from emulator.errors import Unavailable, UsageError


class FakeApt:
    """The distribution's client without a network: names as they would be, packages as empty files."""

    def __init__(self, architecture: str, scratch: Path) -> None:
        assert architecture == "amd64"
        self.scratch = scratch

    def dependency(self, package: str, pattern: str) -> str:
        return package.replace("image-", "image-6.1.0-1-")

    def download(self, package: str) -> Package:
        return Package(package, "1.0", self.scratch / package)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(guests, "Apt", FakeApt)
    monkeypatch.setattr(guests, "extract", lambda package, pattern: (pattern, package.name.encode()))
    monkeypatch.setattr(guest_modules, "Apt", FakeApt)
    monkeypatch.setattr(
        guest_modules, "extract_all", lambda package, patterns: [(name, name.encode()) for name in patterns]
    )
    return tmp_path / "retrap" / "guests"


def test_a_fetched_guest_is_found_with_its_files(cache: Path) -> None:
    fetched = guests.get("debian-amd64")
    assert fetched == guests.find("debian-amd64")
    assert fetched.kernel.read_bytes() == b"linux-image-6.1.0-1-amd64"
    assert b"busybox-static" in fetched.initrd.read_bytes()
    assert fetched.packages == {"linux-image-6.1.0-1-amd64": "1.0", "busybox-static": "1.0"}


def test_fetching_again_replaces_the_guest_and_leaves_nothing_beside_it(cache: Path) -> None:
    guests.get("debian-amd64", ["echo first"])
    guests.get("debian-amd64", ["echo second"])
    assert b"echo second" in guests.find("debian-amd64").initrd.read_bytes()
    assert [path.name for path in cache.iterdir()] == ["debian-amd64"]


def test_a_failed_fetch_keeps_the_guest_that_was_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guests.get("debian-amd64", ["echo first"])

    def fail(package: Package, pattern: str) -> tuple[str, bytes]:
        raise Unavailable("gone")

    monkeypatch.setattr(guests, "extract", fail)
    with pytest.raises(Unavailable, match="gone"):
        guests.get("debian-amd64", ["echo second"])
    assert b"echo first" in guests.find("debian-amd64").initrd.read_bytes()
    assert [path.name for path in cache.iterdir()] == ["debian-amd64"]


def test_looking_for_a_guest_that_was_not_fetched_says_how_to_fetch_it(cache: Path) -> None:
    with pytest.raises(Unavailable, match="retrap guests get debian-amd64"):
        guests.find("debian-amd64")
    assert not cache.exists()


def test_an_unknown_name_is_answered_with_the_known_ones(cache: Path) -> None:
    with pytest.raises(UsageError, match=r"'no-such'.*debian-amd64, debian-amd64-cloud"):
        guests.find("no-such")


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "command_line": "", "marker": ""}'])
def test_a_damaged_record_is_refused_in_one_sentence(cache: Path, record: str) -> None:
    guests.get("debian-amd64")
    (cache / "debian-amd64" / "guest.json").write_text(record)
    with pytest.raises(Unavailable, match=r"guest\.json is damaged; .* makes it anew"):
        guests.find("debian-amd64")


def test_a_record_of_another_format_is_refused(cache: Path) -> None:
    guests.get("debian-amd64")
    path = cache / "debian-amd64" / "guest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(Unavailable, match="another version"):
        guests.find("debian-amd64")


def test_a_guest_without_its_kernel_is_refused(cache: Path) -> None:
    guests.get("debian-amd64").kernel.unlink()
    with pytest.raises(Unavailable, match="incomplete"):
        guests.find("debian-amd64")


def test_a_relative_cache_directory_in_the_environment_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert guests.cache_directory() == tmp_path / ".cache" / "retrap" / "guests"


def test_a_host_without_apt_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt-get is not on this host"):
        Apt("amd64", tmp_path)
