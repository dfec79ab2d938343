"""MIPS32's negative controls: every sensitive instruction traps by itself, so what is left out is the answer to a trap.

Without any one of them the sample's checks must not pass; the other instruction sets have controls in their manifest.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bt.image import load
from bt.session import Options, Session
from emulator.errors import RetrapError
from emulator.isa.operation import Operation
from emulator.machine import EndKind, Limits
from paravirt.hypervisor import Prepared
from paravirt.modes.mips.hypervisor import MipsHypervisor

KERNEL = Path(__file__).parents[2] / "samples" / "mips32" / "portable.elf"
CONTROLS = {
    Operation.DISABLE_INTERRUPTS: "sensitive.",
    Operation.ENABLE_INTERRUPTS: "sensitive.",
    Operation.READ_SYSTEM_REGISTER: "sensitive.",
    Operation.WRITE_SYSTEM_REGISTER: "sensitive.",
    Operation.RETURN_FROM_EXCEPTION: "sensitive.",
    Operation.WRITE_TRANSLATION: "paging.",
    Operation.PROBE_TRANSLATION: "paging.",
    Operation.HALT: "interrupts.wait",
    Operation.READ_HARDWARE_REGISTER: "self-modifying.own",
}
"""Operation -> the checks that need it, by the beginning of their names."""
ENOUGH = {"sensitive.": 0.0002, "paging.": 0.01, "interrupts.wait": 0.1, "self-modifying.own": 0.002}
"""Seconds of guest time in which checks are over; a guest that takes exceptions for ever is stopped then."""


def passes(group: str, left: Operation | None, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the checks pass while one operation is left to the guest, whose instruction is an exception then."""
    prepare = MipsHypervisor._prepare_instruction

    def without(self: MipsHypervisor, pc: int, code: bytes) -> Prepared | None:
        prepared = prepare(self, pc, code)
        return None if prepared is not None and prepared.operation is left else prepared

    monkeypatch.setattr(MipsHypervisor, "_prepare_instruction", without)
    printed = bytearray()
    limits = Limits(guest_seconds=ENOUGH[group])
    options = Options(mode="none", memory=64 << 20, command_line=f"only={group}", cache=False, limits=limits)
    session = Session(load(KERNEL), options, printed.extend)
    try:
        outcome = session.run()
    except RetrapError:
        return False
    finally:
        session.close()
    return outcome.kind is EndKind.DEBUG_EXIT and outcome.status == 0 and b"FAIL" not in printed


@pytest.mark.parametrize("operation", CONTROLS, ids=lambda operation: operation.name)
def test_an_instruction_of_mips_left_unvirtualised_fails_the_checks(
    operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not passes(CONTROLS[operation], operation, monkeypatch)


@pytest.mark.parametrize("group", ENOUGH)
def test_with_all_of_them_the_checks_pass(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes(group, None, monkeypatch)
