"""A guest that halted, kept and gone on with: what cannot wake it here cannot wake it there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bt.cli.main import run
from bt.image import from_bytes, load
from bt.session import Options, Session
from bt.snapshot import ResumedSession, save_session
from emulator.machine import EndKind, Limits, Outcome
from paravirt.services.snapshot import Snapshot
from tests.bt.image.image_files import Part, make_elf
from tests.bt.verify.tiny_guest import TEXT

MIB = 1 << 20
HALT = Path(__file__).parents[3] / "samples" / "x86_64" / "hostile" / "halt.elf"


def halted(path: Path, image: Path | bytes, mode: str = "inline") -> tuple[Outcome, tuple[Any, ...]]:
    """Run to the halt and keep the guest there: how it ended, and what it was then."""
    given = load(image) if isinstance(image, Path) else from_bytes(image, str(path.with_suffix(".elf")))
    session = Session(given, Options(memory=32 * MIB, mode=mode, cache=False), lambda _: None)
    try:
        outcome = session.run()
        save_session(session, path)
        return outcome, place(session)
    finally:
        session.close()


def place(session: Session) -> tuple[Any, ...]:
    driver = session.driver
    return driver.pc, driver.engine.progress, driver.exits.total, driver.machine.memory.digest()  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["trap", "inline"])
def test_a_guest_that_halted_for_good_stays_so(mode: str, tmp_path: Path) -> None:
    outcome, there = halted(tmp_path / "kept", HALT, mode)
    session = ResumedSession(Snapshot(tmp_path / "kept"), lambda _: None, cache=False, limits=Limits(guest_seconds=9))
    try:
        for _ in range(2):
            assert session.run() == outcome == Outcome(EndKind.HALTED, detail="halted with interrupts disabled")
            assert place(session) == there
    finally:
        session.close()


def test_resume_says_of_a_guest_that_halted_where_that_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    halted(tmp_path / "kept", HALT)
    assert run(["resume", str(tmp_path / "kept"), "--json", str(tmp_path / "end.json"), "--timeout", "60"]) == 0
    assert capfd.readouterr().err.startswith("retrap: the guest halted with interrupts disabled, at 0xffffffff81")
    assert json.loads((tmp_path / "end.json").read_text())["outcome"]["kind"] == "halted"


def test_a_guest_that_waits_for_an_interrupt_waits_on(tmp_path: Path) -> None:
    """STI, HLT, and what would end the run if it were reached."""
    code = b"\xfb\xf4" + b"\xfa\xb0\x00\xe6\xf4" + b"\xeb\xfe"
    image = make_elf((Part(".text", code, TEXT, TEXT, 5),), TEXT)
    (tmp_path / "kept.elf").write_bytes(image)
    outcome, there = halted(tmp_path / "kept", image)
    assert outcome == Outcome(EndKind.HALTED, detail="halted with no interrupt to come")
    session = ResumedSession(Snapshot(tmp_path / "kept"), lambda _: None, cache=False, limits=Limits(guest_seconds=9))
    try:
        assert session.run() == outcome
        assert place(session) == there
    finally:
        session.close()
