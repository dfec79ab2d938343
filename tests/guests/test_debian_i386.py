"""Debian's 32-bit kernels, with two-level tables and with PAE: deprivileged, they run to their end, twice the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import NamedTuple

import pytest

from bt import guests, qemu
from bt.console_compare import compare, kernel_lines
from bt.guests import Guest
from bt.image import load
from bt.session import Options, Session
from emulator.errors import Unavailable
from emulator.machine import EndKind
from paravirt.hypervisor import Hypervisor

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(600)]

MOST_EXITS = {"inline": 30_000, "trap": 440_000}
FLAGS = ("DISABLE_INTERRUPTS", "ENABLE_INTERRUPTS", "READ_FLAGS", "WRITE_FLAGS")
"""Operations on the interrupt flag."""


class Run(NamedTuple):
    """What a whole run leaves."""

    console: bytes
    exits: dict[tuple[str, str], int]
    memory: str
    """Its digest."""


Kernel = tuple[Guest, Callable[[str], Run]]
"""A guest, and its run in a mode: one for all tests."""


def run(guest: Guest, mode: str) -> Run:
    printed = bytearray()
    options = Options(mode=mode, initrd=guest.initrd.read_bytes(), command_line=guest.command_line)
    session = Session(load(guest.kernel), options, printed.extend)
    try:
        outcome = session.run()
        assert outcome.kind is EndKind.HALTED
        assert b"retrap: user space reached" in printed
        assert isinstance(session.driver, Hypervisor)
        return Run(bytes(printed), dict(session.driver.exits.counts), session.machine.memory.digest())
    finally:
        session.close()


@pytest.fixture(scope="module", params=["debian-i386", "debian-i386-pae"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    try:
        guest = guests.find(request.param)
    except Unavailable as error:
        pytest.skip(str(error))
    known: dict[str, Run] = {}

    def known_run(mode: str) -> Run:
        if mode not in known:
            known[mode] = run(guest, mode)
        return known[mode]

    return guest, known_run


def total(exits: dict[tuple[str, str], int]) -> int:
    """All exits; what was handed up late came with another."""
    return sum(count for (_operation, route), count in exits.items() if route != "late")


def test_a_32_bit_kernel_boots_with_fixups_and_does_so_twice_the_same(kernel: Kernel) -> None:
    guest, known_run = kernel
    exits = known_run("inline").exits
    assert run(guest, "inline") == known_run("inline")
    assert total(exits) <= MOST_EXITS["inline"]
    assert sum(count for (operation, _route), count in exits.items() if operation in FLAGS) <= 4_000


def test_a_32_bit_kernel_boots_with_planted_traps_alone(kernel: Kernel) -> None:
    assert total(kernel[1]("trap").exits) <= MOST_EXITS["trap"]


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which(qemu.PROGRAM) is None, reason=f"needs {qemu.PROGRAM}")
def test_a_32_bit_kernel_prints_what_it_prints_on_qemu_and_every_difference_has_a_rule(kernel: Kernel) -> None:
    guest, known_run = kernel
    theirs = qemu.console(guest)
    for mode in ("inline", "trap"):
        console = known_run(mode).console
        assert guest.marker in kernel_lines(console)
        assert kernel_lines(console)[-1] == qemu.HALTED
        comparison = compare(console, theirs)
        assert comparison.passed, comparison.report()
        assert comparison.equal > 180
