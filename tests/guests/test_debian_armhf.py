"""Debian's kernel for 32-bit Arm: deprivileged it runs to power-off, twice the same, crypto self-tests included."""

from __future__ import annotations

import re

import pytest

from bt import guests
from bt.guests import Guest
from bt.image import load
from bt.session import Options, Session
from emulator.errors import Unavailable
from emulator.machine import EndKind
from paravirt.hypervisor import Hypervisor

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(600)]

MOST_EXITS = 250_000
FLAGS = ("DISABLE_INTERRUPTS", "ENABLE_INTERRUPTS", "READ_FLAGS", "WRITE_FLAGS")
OWN_LINES = (
    "VIPT",  # what is told of the caches: one line each, so that none is flushed by set and way
    "Memory: ",
    "Kernel command line",
    "hw-breakpoint",  # the processor's debug registers, which the engine does not have at full privilege
)


@pytest.fixture(scope="module")
def guest() -> Guest:
    try:
        return guests.find("debian-armhf")
    except Unavailable as error:
        pytest.skip(str(error))


def run(guest: Guest, mode: str) -> tuple[bytes, dict[tuple[str, str], int], str, str]:
    """Console, exits, and the digests of memory and of the board, of a whole run."""
    printed = bytearray()
    options = Options(mode=mode, initrd=guest.initrd.read_bytes(), command_line=guest.command_line)
    session = Session(load(guest.kernel), options, printed.extend)
    try:
        outcome = session.run()
        assert outcome.kind is EndKind.POWER_OFF
        assert guest.marker.encode() in printed
        assert b"failed (rc=" not in printed  # what the crypto self-tests say
        machine, driver = session.machine, session.driver
        exits = dict(driver.exits.counts) if isinstance(driver, Hypervisor) else {}
        return bytes(printed), exits, machine.memory.digest(), machine.board.digest()
    finally:
        session.close()


@pytest.fixture(scope="module")
def inline(guest: Guest) -> tuple[bytes, dict[tuple[str, str], int], str, str]:
    """A run that all tests look at."""
    return run(guest, "inline")


def lines(console: bytes) -> set[str]:
    """What a console says, without times and without what is this machine's own."""
    text = console.decode(errors="replace").replace("\r", "")
    bare = (re.sub(r"^\[ *[\d.]+\] ", "", line) for line in text.splitlines())
    return {re.sub(r"\(\d+\.\d+:\d+\)", "", line) for line in bare if not any(own in line for own in OWN_LINES)}


def test_it_boots_inline_within_its_exits_and_does_so_twice_the_same(
    guest: Guest, inline: tuple[bytes, dict[tuple[str, str], int], str, str]
) -> None:
    assert run(guest, "inline") == inline
    exits = inline[1]
    assert sum(exits.values()) <= MOST_EXITS
    # Only while an interrupt waits, and before there is a place for fixups, do the kernel's own masks exit.
    assert sum(count for (operation, _route), count in exits.items() if operation in FLAGS) <= 2000


def test_traps_alone_and_the_reference_print_the_same(
    guest: Guest, inline: tuple[bytes, dict[tuple[str, str], int], str, str]
) -> None:
    assert lines(run(guest, "trap")[0]) == lines(inline[0])
    assert lines(run(guest, "native")[0]) == lines(inline[0])
