"""Guests whose own tables are walked: saved, resumed, recorded and gone through backwards, on every instruction set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from bt.cli.main import run as retrap
from bt.image import load
from bt.session import Options, Session
from bt.snapshot import ResumedSession, Snapshot, save_session
from emulator.errors import BadSnapshot
from emulator.machine import EndKind, Outcome
from paravirt.hypervisor import Hypervisor
from paravirt.mmu.direct_views import DirectViews
from paravirt.services.positions import Position
from paravirt.services.snapshot_form import DIGEST, FORMAT, HEAD, MAGIC
from paravirt.services.timeline import PAUSED, ConsoleOnce, Timeline
from tests.paravirt.services.test_snapshot_file import sealed
from tests.paravirt.services.ticking_guest import fingerprint

SAMPLES = Path(__file__).parents[2] / "samples"
WAYS = [("x86_64", "direct"), ("x86_64", "batched"), ("i386", "batched"), ("aarch64", "direct"), ("aarch64", "batched")]
CHECKS = "only=paging. rounds=100"
HERE = Outcome(EndKind.STOPPED, detail="paused")


def start(isa: str, technique: str, console: Any = lambda _: None) -> Session:
    """A session that has not run yet."""
    options = Options(mode="para", technique=technique, memory=64 << 20, command_line=CHECKS)
    session = Session(load(SAMPLES / isa / "pv.elf"), options, console)
    session.machine.begin()
    session.machine.arm()
    return session


def run_to(session: Session, progress: int) -> None:
    driver = cast(Hypervisor, session.driver)
    session.machine.engine.pause_at(progress, lambda: driver.end(HERE))
    assert driver.resume() is HERE


@pytest.mark.parametrize(("isa", "technique"), WAYS)
def test_a_resumed_guest_goes_on_exit_for_exit(isa: str, technique: str, tmp_path: Path) -> None:
    heard, behind = bytearray(), bytearray()
    plain = start(isa, technique, heard.extend)
    outcome = cast(Hypervisor, plain.driver).resume()
    end = fingerprint(plain.driver)
    plain.close()
    assert outcome.kind is EndKind.POWER_OFF
    path, saved = tmp_path / "guest.snapshot", start(isa, technique)
    for place, walked in ((300, False), (end[0] // 2, True), (end[0] * 9 // 10, True)):
        behind.clear()
        run_to(saved, place)
        assert isinstance(cast(Hypervisor, saved.driver).shadow, DirectViews) == walked
        save_session(saved, path)
        there = fingerprint(saved.driver)
        resumed = ResumedSession(Snapshot(path), behind.extend)
        assert resumed.exact
        assert fingerprint(resumed.driver) == there
        assert resumed.run() == outcome
        assert fingerprint(resumed.driver) == end
        assert heard.endswith(behind)
        resumed.close()
    saved.close()


@pytest.mark.parametrize(("isa", "technique"), [("x86_64", "batched"), ("i386", "direct"), ("aarch64", "direct")])
def test_a_history_goes_back_before_the_guest_went_over_to_its_own_tables(isa: str, technique: str) -> None:
    heard = bytearray()
    session = start(isa, technique, console := ConsoleOnce(heard.extend))
    driver = cast(Hypervisor, session.driver)
    timeline = Timeline(driver, console, interval=20_000, begun=True)
    outcome = timeline.run()
    end, printed, last = fingerprint(driver), bytes(heard), timeline.position.progress - 1
    kinds = set()
    for place in (last // 2, 300, last * 9 // 10):
        assert timeline.goto(Position(place)) is PAUSED
        backwards = fingerprint(driver)
        kinds.add(isinstance(driver.shadow, DirectViews))
        timeline.goto(timeline.start)
        timeline.run(Position(place))
        assert fingerprint(driver) == backwards
        seen = [driver.state]
        for _ in range(3):
            timeline.step()
            seen.append(driver.state)
        for state in reversed(seen[:-1]):
            timeline.step_back()
            assert driver.state == state
    assert kinds == {False, True}
    assert timeline.run() == outcome
    assert fingerprint(driver) == end
    assert heard == printed
    timeline.close()
    session.close()


def test_a_recording_is_replayed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    port, file = str(SAMPLES / "x86_64" / "pv.elf"), str(tmp_path / "run.rec")
    way = ("--virt", "para", "--memory-technique", "batched", "--memory", "64M", "--append", CHECKS)
    assert retrap(["run", port, *way, "--record", file]) == 0
    assert retrap(["replay", file]) == 0
    assert capfd.readouterr().out.count("ok paging.two-roots") == 2


def lying(path: Path, column: str, at: int, value: int) -> Path:
    """A snapshot with a right checksum of which one byte of a column is another."""
    import zstandard

    data = path.read_bytes()
    _, _, size = HEAD.unpack_from(data)
    header = json.loads(data[HEAD.size : HEAD.size + size])
    section = next(one for one in header["sections"] if one["name"] == "columns")
    begin = HEAD.size + size
    packed = data[begin : begin + section["size"]]
    table = bytearray(zstandard.ZstdDecompressor().decompress(packed))
    places = np.cumsum([0, *(one[1] for one in section["columns"])]).tolist()
    where = places[[one[0] for one in section["columns"]].index(column)]
    table[where + at] = value
    again = zstandard.ZstdCompressor().compress(bytes(table))
    section["size"] = len(again)
    text = json.dumps(header).encode()
    lie = path.with_name("lie")
    lie.write_bytes(sealed(HEAD.pack(MAGIC, FORMAT, len(text)) + text + again + data[begin + len(packed) : -DIGEST]))
    return lie


def test_a_file_that_says_that_a_table_is_data_is_refused(tmp_path: Path) -> None:
    path, saved = tmp_path / "guest.snapshot", start("x86_64", "direct")
    run_to(saved, 100_000)
    tables = cast(Any, saved.driver).shadow.tables
    kinds = tables.frames.kind_array[tables._ahead :]
    number = int(np.flatnonzero((kinds == 1) & (tables.frames.uses_array[tables._ahead :] != 0))[0])
    save_session(saved, path)
    saved.close()
    for column, at, value, told in (
        ("walked.levels", number, 0, "leads to what is no page table of level 1"),
        ("walked.levels", number, 2, "leads to a table of its own level, and can be written through"),
        ("walked.levels", number, 77, "none of a machine of this size"),
        ("walked.pinned", (64 << 20 >> 12) - 1, 1, "pinned that is no page table"),
        ("walked.roots", 1, 0xEE, "root"),
        ("walked.numbers", 0, 1, "machine frames"),
    ):
        with pytest.raises(BadSnapshot, match=told):
            ResumedSession(Snapshot(lying(path, column, at, value)), lambda _: None)
