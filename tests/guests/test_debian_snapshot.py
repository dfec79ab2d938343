"""Debian's kernels, saved while they boot: a resumed one goes on exit for exit, and on another engine to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from bt import guests
from bt.image import load
from bt.session import Options, Session, read_initrd
from bt.snapshot import ResumedSession, Snapshot, save_session
from emulator.errors import Unavailable
from emulator.machine import EndKind, Outcome
from paravirt.hypervisor import Hypervisor
from tests.paravirt.services.ticking_guest import fingerprint

PAUSED = Outcome(EndKind.STOPPED, detail="paused")


def run_to(session: Session, progress: int) -> Hypervisor:
    driver = cast(Hypervisor, session.driver)
    engine: Any = session.machine.engine
    engine.pause_at(progress, lambda: driver.end(PAUSED))
    assert driver.resume() is PAUSED
    return driver


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("name", "saved", "end"), [("debian-amd64", 60, 66), ("debian-i386-pae", 30, 34), ("debian-arm64", 40, 46)]
)
def test_a_resumed_kernel_goes_on_exit_for_exit(name: str, saved: int, end: int, tmp_path: Path) -> None:
    try:
        guest = guests.find(name)
    except Unavailable as error:
        pytest.skip(str(error))
    path = tmp_path / "kernel.snapshot"
    options = Options(memory=128 << 20, initrd=read_initrd(guest.initrd), command_line=guest.command_line)
    session = Session(load(guest.kernel), options, lambda _: None)
    session.machine.begin()
    session.machine.arm()
    run_to(session, saved * 1_000_000)
    save_session(session, path)
    went_on = fingerprint(run_to(session, end * 1_000_000))
    session.close()
    resumed = ResumedSession(Snapshot(path), lambda _: None)
    assert resumed.exact
    resumed.machine.begin()
    assert fingerprint(run_to(resumed, end * 1_000_000)) == went_on
    resumed.close()
