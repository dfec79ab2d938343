"""The hostile guest of Xen's interface: what it may not have it does not get, by the error that the interface names."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bt.image import from_bytes, load
from bt.session import Options, Session
from emulator.machine import EndKind, Limits
from paravirt.xen.audit import violations
from paravirt.xen.hypervisor import XenHypervisor
from paravirt.xen.public import Note

SAMPLES = Path(__file__).parents[2] / "samples"
HOSTILE = SAMPLES / "xen" / "hostile.elf"
CHECKS = 373


class Ran(NamedTuple):
    """One run."""

    kind: EndKind
    console: str
    driver: XenHypervisor
    progress: int
    digest: str
    state: tuple[Any, ...]


def run(memory: int = 16) -> Ran:
    printed = bytearray()
    limits = Limits(host_seconds=60)
    session = Session(load(HOSTILE), Options(mode="xen", memory=memory << 20, limits=limits), printed.extend)
    try:
        outcome = session.run()
        driver = session.driver
        assert isinstance(driver, XenHypervisor)
        machine = session.machine
        return Ran(
            outcome.kind, printed.decode(), driver, machine.engine.progress, machine.memory.digest(), driver.state
        )
    finally:
        session.close()


@pytest.fixture(scope="module")
def ran() -> Ran:
    return run()


def test_every_forbidden_thing_is_refused_by_its_error(ran: Ran) -> None:
    assert [line for line in ran.console.splitlines() if line.startswith("BAD")] == []
    assert ran.console.endswith(f"retrap xen: {CHECKS} checks, 0 bad\n")
    assert len(re.findall(r"^ok   \S+$", ran.console, re.MULTILINE)) == CHECKS
    assert ran.kind is EndKind.POWER_OFF


def test_all_counts_hold_behind_a_hostile_guest(ran: Ran) -> None:
    assert violations(ran.driver.domain) == []
    assert sum(ran.driver.domain.owned.refused.values()) > 50


def test_the_audit_sees_a_table_that_can_be_written(ran: Ran) -> None:
    domain = ran.driver.domain
    root = domain.vcpu.kernel_root
    words = domain.host.words
    table = next(at for at in range(domain.frames.count) if domain.frames.kind[at] == 1 and domain.frames.uses[at])
    before = words[table * 512]
    words[table * 512] = root << 12 | 7
    try:
        found = violations(domain)
    finally:
        words[table * 512] = before
    assert any("writable" in sentence for sentence in found)
    assert any("counted" in sentence for sentence in found)


def test_two_runs_are_the_same(ran: Ran) -> None:
    again = run()
    assert (again.console, again.progress, again.digest) == (ran.console, ran.progress, ran.digest)
    assert again.driver.exits.counts == ran.driver.exits.counts
    assert again.state == ran.state


def test_another_amount_of_memory_changes_nothing() -> None:
    assert run(64).console.endswith(f"retrap xen: {CHECKS} checks, 0 bad\n")


def test_a_kernel_whose_notes_name_no_entry_is_entered_where_its_file_says() -> None:
    entry = struct.pack("<III", 4, 8, Note.ENTRY) + b"Xen\0"
    other = struct.pack("<III", 4, 8, 99) + b"Xen\0"
    contents = HOSTILE.read_bytes()
    assert contents.count(entry) == 1
    printed = bytearray()
    image = from_bytes(contents.replace(entry, other), "no-entry")
    session = Session(image, Options(mode="xen", memory=16 << 20), printed.extend)
    try:
        assert session.run().kind is EndKind.POWER_OFF
    finally:
        session.close()
    assert printed.endswith(b"0 bad\n")


@pytest.mark.slow
def test_the_checked_in_file_is_what_the_source_gives(tmp_path: Path) -> None:
    compiler = tomllib.loads((SAMPLES / "manifest.toml").read_text())["tools"]["compiler"]
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("gcc or make is not installed")
    here = subprocess.run(["gcc", "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    if here != compiler:
        pytest.skip(f"the checked-in file is by {compiler}, here is {here}")
    command = ["make", "-s", "-C", str(SAMPLES / "xen"), f"OUT={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "hostile.elf").read_bytes() == HOSTILE.read_bytes()
