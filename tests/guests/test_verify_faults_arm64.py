"""On AArch64 too, a deliberately wrong register or trap is caught by verification, and its place is named."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from bt.image import from_bytes
from bt.session import Options
from bt.tactics.aarch64 import tactics
from bt.verify import Verification, report, run_and_compare, verify
from bt.verify.guest import Guest
from emulator.errors import VerifyFailed
from emulator.machine import Limits
from paravirt.operations.aarch64 import registers
from tests.bt.verify.tiny_arm64 import step, tiny_arm64

Patch = pytest.MonkeyPatch
OPTIONS = Options(memory=8 << 20, limits=Limits(0.0001, 3.0), cache=False)
"""A guest that is right is done within two microseconds; one that is wrong may go round for ever, or fault without end
at one place, where its time stands still."""


@pytest.fixture(scope="module")
def tiny() -> Verification:
    return verify(Guest("tiny", from_bytes(tiny_arm64(), "tiny"), memory=OPTIONS.memory), OPTIONS, ())


def elr_read_from_the_fault_address(patch: Patch) -> None:
    other = tactics._STAND_IN["MRS FAR_EL1"]
    patch.setitem(tactics._STAND_IN, "MRS ELR_EL1", other)


def fault_address_written_to_elr(patch: Patch) -> None:
    other = tactics._STAND_IN["MSR ELR_EL1"]
    patch.setitem(tactics._STAND_IN, "MSR FAR_EL1", other)


def thread_register_that_loses_a_bit(patch: Patch) -> None:
    patch.setitem(registers._READ, "TPIDR_EL1", lambda _context, vcpu: vcpu.registers.thread & ~1)


def level_that_is_the_real_one(patch: Patch) -> None:
    patch.setitem(registers._READ, "CurrentEL", lambda _context, _vcpu: 0)


def masks_that_are_not_read(patch: Patch) -> None:
    patch.setitem(registers._READ, "DAIF", lambda _context, _vcpu: 0)


FAULTS = (
    (elr_read_from_the_fault_address, "inline", "elr"),
    (fault_address_written_to_elr, "inline", "far"),
    (thread_register_that_loses_a_bit, "trap", "thread"),
    (level_that_is_the_real_one, "inline", "level"),
    (masks_that_are_not_read, "trap", "daif set"),
)


@pytest.mark.parametrize("mode", ["trap", "inline"])
def test_the_tiny_guest_does_the_same_in_every_mode(tiny: Verification, mode: str) -> None:
    comparison = run_and_compare(tiny, OPTIONS, mode)
    assert comparison.passed
    assert [event.number for event in comparison.pair.rewritten.of("system call")] == [77]


@pytest.mark.parametrize(("damage", "mode", "wrong"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_register_or_trap_is_caught_where_it_is(
    damage: Callable[[Patch], None], mode: str, wrong: str, tiny: Verification, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch)
    comparison = run_and_compare(tiny, OPTIONS, mode)
    assert not comparison.passed
    memory = next(finding.result.divergence for finding in comparison.findings if finding.rule.name == "memory")
    assert memory is not None
    assert memory.rewritten is not None
    assert memory.rewritten.address is not None
    assert step(memory.rewritten.address) == wrong


def test_the_report_of_a_failure_says_what_the_reference_was(
    tiny: Verification, monkeypatch: pytest.MonkeyPatch
) -> None:
    level_that_is_the_real_one(monkeypatch)
    wrong = Verification(tiny.guest, tiny.reference, [run_and_compare(tiny, OPTIONS, "trap")])
    with pytest.raises(VerifyFailed, match="tiny in trap mode is not the reference"):
        wrong.check()
    shown = report.text(wrong)
    assert "FAILED" in shown
    assert "at full privilege, unmodified" in shown
    written = report.as_json(wrong)
    assert json.dumps(written)
    assert written["isa"] == "aarch64"
    assert written["reference"]["full_privilege"]
