"""What rewriting is for: how many exits are left. Counts are exact and repeat, so they are asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from bt import guests
from bt.image import load
from bt.session import Options, Session
from emulator.errors import RetrapError
from emulator.machine import EndKind
from paravirt.hypervisor import Hypervisor

SAMPLES = Path(__file__).parents[2] / "samples"
SAMPLE = SAMPLES / "x86_64" / "sample.elf"
FLAGS = ("DISABLE_INTERRUPTS", "ENABLE_INTERRUPTS", "READ_FLAGS", "WRITE_FLAGS")
"""Operations on the interrupt flag."""


def counts(session: Session) -> dict[tuple[str, str], int]:
    """The exit table of a session that has ended."""
    assert isinstance(session.driver, Hypervisor)
    return dict(session.driver.exits.counts)


def test_a_million_cli_sti_pairs_exit_only_when_an_interrupt_waits() -> None:
    options = Options(mode="inline", command_line="only=interrupts.million-cli-sti", cache=False)
    session = Session(load(SAMPLE), options, lambda _data: None)
    try:
        outcome = session.run()
        assert (outcome.kind, outcome.status) == (EndKind.DEBUG_EXIT, 0)
        exits = counts(session)
    finally:
        session.close()
    assert sum(exits.get((operation, "trap"), 0) for operation in FLAGS) <= 4  # outside the loop
    delivered = exits["interrupt delivered", "injection"]
    assert 0 < exits["ENABLE_INTERRUPTS", "hypercall"] <= delivered


@pytest.mark.parametrize("mode", ["inline", "auto"])
@pytest.mark.parametrize("isa", ["x86_64", "i386", "armv7", "aarch64", "mips32", "mips32/big"])
def test_a_million_pairs_cost_no_exit_on_any_instruction_set(isa: str, mode: str) -> None:
    """But where an interrupt waits for the flag: at most once for each that is delivered; and a few before the loop."""
    options = Options(mode=mode, memory=64 << 20, command_line="only=interrupts.million-pairs", cache=False)
    printed = bytearray()
    session = Session(load(SAMPLES / isa / "portable.elf"), options, printed.extend)
    try:
        session.run()
        assert b"ok interrupts.million-pairs" in printed
        exits = counts(session)
    finally:
        session.close()
    delivered = exits["interrupt delivered", "injection"]
    flags = {
        key: count for key, count in exits.items() if key[0] in (*FLAGS, "interrupt flag with an interrupt waiting")
    }
    traps = sum(count for (operation, route), count in flags.items() if route == "trap" and operation != FLAGS[1])
    assert traps <= 2
    assert sum(flags.values()) - traps <= delivered
    assert sum(exits.values()) < 1000, "of which most are fills and writes to the console"


@pytest.mark.kernel
def test_a_stock_kernel_boots_inline_twice_the_same_with_few_exits_and_almost_none_for_the_interrupt_flag() -> None:
    try:
        guest = guests.find("debian-amd64")
    except RetrapError as error:
        pytest.skip(f"Debian's kernel is not here: {error}")
    options = Options(initrd=guest.initrd.read_bytes(), command_line=guest.command_line)
    image, seen = load(guest.kernel), []
    for _ in range(2):
        printed = bytearray()
        session = Session(image, options, printed.extend)
        try:
            assert session.run().kind is EndKind.HALTED
            assert b"retrap: user space reached" in printed
            machine = session.machine  # at least one instruction is a unit of its engine's progress
            digests = machine.memory.digest(), machine.board.digest()
            seen.append((bytes(printed), counts(session), machine.engine.progress, digests))
        finally:
            session.close()
    assert seen[0] == seen[1]
    _console, exits, instructions, _digests = seen[0]
    assert sum(exits.values()) <= 40_000
    flags = sum(count for (operation, _route), count in exits.items() if operation in FLAGS)
    assert flags <= instructions // 100_000
    assert flags <= 100
