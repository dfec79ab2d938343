"""Snapshots whose contents lie behind a right checksum: refused in a sentence, or a guest that harms nobody but itself.

Processor, devices and the numbers of the hypervisor's own are changed, of every instruction set, and what is taken up
is run on for a while: nothing but a sentence or an end of the guest comes of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt.image import load
from bt.session import Options, Session
from bt.snapshot import ResumedSession, Snapshot, save_session
from emulator.errors import RetrapError
from emulator.machine import EndKind, Limits, Outcome
from paravirt.services.snapshot_form import DIGEST, FORMAT, HEAD, MAGIC

SAMPLES = Path(__file__).parents[2] / "samples"
HERE = Outcome(EndKind.STOPPED, detail="paused")
PROGRESS = 3_000_000
VALUES: list[Any] = [None, -1, 0, 1, 3, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 64) - 1, 1 << 63, 1 << 90, 1 << 200]
VALUES += ["x", "", "00", "ff" * 64, [], [[]], True, 1.5, [-1] * 5]
LIES = [-1, 0, 1, 5, 511, 4096, 1 << 31, 1 << 40, -(1 << 62), 0x7FFF_FFFF_FFFF_FFFF]


class Kept:
    """A guest's snapshot, taken apart."""

    def __init__(self, isa: str, folder: Path) -> None:
        options = Options(mode="inline", memory=64 << 20, command_line="only=processes.")
        session = Session(load(SAMPLES / isa / "portable.elf"), options, lambda _: None)
        session.machine.begin()
        session.machine.arm()
        session.machine.engine.pause_at(PROGRESS, lambda: session.driver.end(HERE))
        assert session.driver.resume() is HERE
        path = folder / "guest.snapshot"
        save_session(session, path)
        session.close()
        data = path.read_bytes()
        _, _, size = HEAD.unpack_from(data)
        self.header = data[HEAD.size : HEAD.size + size]
        self.sections = data[HEAD.size + size : -DIGEST]
        told = json.loads(self.header)
        columns = next(one for one in told["sections"] if one["name"] == "columns")
        self.packed = columns["size"]
        self.columns = zstandard.ZstdDecompressor().decompress(self.sections[: self.packed])
        self.names = [one for one in columns["columns"] if one[1] >= 8]
        parts = ("processor", "devices", "state")
        self.places = [(part, *place) for part in parts for place in _places(told[part])]

    def write(self, path: Path, header: dict[str, Any], sections: bytes) -> None:
        """A file with a right checksum."""
        text = json.dumps(header).encode()
        data = HEAD.pack(MAGIC, FORMAT, len(text)) + text + sections
        path.write_bytes(data + hashlib.sha256(data).digest())

    def change_value(self, data: st.DataObject, path: Path) -> None:
        """Another value somewhere in the header."""
        header = json.loads(self.header)
        place = data.draw(st.sampled_from(self.places))
        around: Any = header
        for key in place[:-1]:
            around = around[key]
        old = around[place[-1]]
        bits = st.integers(0, 63).map(lambda bit: old ^ 1 << bit) if type(old) is int else st.nothing()
        around[place[-1]] = data.draw(st.one_of(bits, st.sampled_from(VALUES)))
        self.write(path, header, self.sections)

    def change_column(self, data: st.DataObject, path: Path) -> None:
        """Another number somewhere in the columns."""
        header = json.loads(self.header)
        section = next(one for one in header["sections"] if one["name"] == "columns")
        chosen = data.draw(st.sampled_from(self.names))
        before = section["columns"].index(chosen)
        at = sum(one[1] for one in section["columns"][:before]) + 8 * data.draw(st.integers(0, chosen[1] // 8 - 1))
        table = bytearray(self.columns)
        table[at : at + 8] = np.int64(data.draw(st.sampled_from(LIES))).tobytes()
        packed = zstandard.ZstdCompressor().compress(bytes(table))
        section["size"] = len(packed)
        self.write(path, header, packed + self.sections[self.packed :])


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, list):
        for index in range(min(len(value), 60)):
            yield from _places(value[index], (*path, index))


@pytest.fixture(scope="module", params=["x86_64", "aarch64", "armv7", "mips32"])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(request.param, tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("how", [Kept.change_value, Kept.change_column], ids=["value", "column"])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_snapshot_that_lies_ends_in_a_sentence_or_in_a_guest(
    kept: Kept, tmp_path: Path, how: Any, data: st.DataObject
) -> None:
    path = tmp_path / "lie"
    how(kept, data, path)
    limits = Limits(guest_seconds=PROGRESS / 1e8 + 0.01, host_seconds=5)
    told, outcome = "", None
    try:
        session = ResumedSession(Snapshot(path), lambda _: None, limits=limits)
        try:
            outcome = session.run()
        finally:
            session.close()
    except RetrapError as error:
        told = str(error)
    assert outcome is not None or told
