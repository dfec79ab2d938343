"""Debian's 32-bit kernels, with two-level tables and with PAE: deprivileged, they run to their end, twice the same."""

from __future__ import annotations

import pytest

from bt import guests
from bt.image import load
from bt.session import Options, Session
from emulator.errors import Unavailable
from emulator.machine import EndKind
from paravirt.hypervisor import Hypervisor

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(600)]

MOST_EXITS = {"inline": 30_000, "trap": 440_000}
FLAGS = ("DISABLE_INTERRUPTS", "ENABLE_INTERRUPTS", "READ_FLAGS", "WRITE_FLAGS")
"""Operations on the interrupt flag."""


def run(name: str, mode: str) -> tuple[bytes, dict[tuple[str, str], int], bytes]:
    """Console, exits and memory of a whole run."""
    try:
        guest = guests.find(name)
    except Unavailable as error:
        pytest.skip(str(error))
    printed = bytearray()
    options = Options(mode=mode, initrd=guest.initrd.read_bytes(), command_line=guest.command_line)
    session = Session(load(guest.kernel), options, printed.extend)
    try:
        outcome = session.run()
        assert outcome.kind is EndKind.HALTED
        assert b"retrap: user space reached" in printed
        assert isinstance(session.driver, Hypervisor)
        return bytes(printed), dict(session.driver.exits.counts), bytes(session.machine.memory.view)
    finally:
        session.close()


def total(exits: dict[tuple[str, str], int]) -> int:
    """All exits; what was handed up late came with another."""
    return sum(count for (_operation, route), count in exits.items() if route != "late")


@pytest.mark.parametrize("name", ["debian-i386", "debian-i386-pae"])
def test_a_32_bit_kernel_boots_with_fixups_and_does_so_twice_the_same(name: str) -> None:
    first, second = run(name, "inline"), run(name, "inline")
    assert first == second
    exits = first[1]
    assert total(exits) <= MOST_EXITS["inline"]
    assert sum(count for (operation, _route), count in exits.items() if operation in FLAGS) <= 4_000


@pytest.mark.parametrize("name", ["debian-i386", "debian-i386-pae"])
def test_a_32_bit_kernel_boots_with_planted_traps_alone(name: str) -> None:
    assert total(run(name, "trap")[1]) <= MOST_EXITS["trap"]
