"""On i386, ARMv7 and MIPS32 too a wrong fixup or trap is caught by verification, and its place is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

import pytest

from bt.image import from_bytes
from bt.session import Options
from bt.tactics.arm import templates as arm_fixups
from bt.tactics.mips import fixups as mips_fixups
from bt.tactics.mips import tactics as mips
from bt.tactics.mips import words as mips_words
from bt.tactics.x86 import assemble32 as asm
from bt.tactics.x86 import templates32
from bt.verify import Verification, run_and_compare, verify
from bt.verify.blame import blame
from bt.verify.guest import Guest
from emulator.isa.mips import identity as mips_identity
from emulator.machine import Limits
from paravirt import abi
from paravirt.modes.mips import vcpu as mips_cpu
from paravirt.operations.arm import registers as arm_registers
from tests.bt.verify import tiny_arm, tiny_i386, tiny_mips

Patch = pytest.MonkeyPatch
OPTIONS = Options(memory=32 << 20, limits=Limits(0.0001, 3.0), cache=False)
"""A guest that is right is done within two microseconds; one that is wrong may go round for ever, or fault without end
at one place, where its time stands still."""
GUESTS: dict[str, tuple[ModuleType, Callable[[], bytes], tuple[tuple[int, int], ...]]] = {
    "i386": (tiny_i386, tiny_i386.tiny_i386, ((tiny_i386.STACK - tiny_i386.STACK_SIZE, tiny_i386.STACK_SIZE),)),
    "armv7": (tiny_arm, tiny_arm.tiny_arm, ()),
    "mips32": (tiny_mips, tiny_mips.tiny_mips, ()),
}
"""What names a step of the guest's, what makes the guest, and what it leaves behind below its stack."""


@pytest.fixture(scope="module", params=GUESTS)
def tiny(request: pytest.FixtureRequest) -> tuple[str, Verification]:
    name = request.param
    return name, reference(name)


_KNOWN: dict[str, Verification] = {}


def reference(name: str) -> Verification:
    if name not in _KNOWN:
        _module, make, volatile = GUESTS[name]
        guest = Guest(name, from_bytes(make(), name), memory=OPTIONS.memory, volatile=volatile)
        _KNOWN[name] = verify(guest, OPTIONS, ())
    return _KNOWN[name]


# -- i386 -------------------------------------------------------------------------------------------


def cli_that_does_not_clear(patch: Patch) -> None:
    right = templates32.disable()
    patch.setattr(
        templates32, "disable", lambda: replace(right, code=asm.store_constant(templates32.DELTA, abi.I386.enabled))
    )


def pushf_with_the_real_flag(patch: Patch) -> None:
    patch.setattr(templates32, "corrected", lambda _register, _other: ())


def control_register_that_is_another(patch: Patch) -> None:
    right = templates32.read_control_register
    patch.setattr(templates32, "read_control_register", lambda register, number: right(register, _OTHERS[number]))


_OTHERS = {0: 4, 2: 0, 3: 0, 4: 0}


def selector_with_its_real_ring(patch: Patch) -> None:
    right = templates32.read_selector
    patch.setattr(
        templates32, "read_selector", lambda code, register, size: replace(right(code, register, size), code=code)
    )


# -- ARMv7 ------------------------------------------------------------------------------------------


def cps_that_does_the_opposite(patch: Patch) -> None:
    right = arm_fixups.set_interrupts
    patch.setattr(arm_fixups, "set_interrupts", lambda masked: right(not masked))


def status_that_loses_a_register(patch: Patch) -> None:
    right = arm_fixups.read_status

    def wrong(target: int) -> arm_fixups.Template:
        template = right(target)
        return replace(template, words=template.words[:-1])

    patch.setattr(arm_fixups, "read_status", wrong)


def status_without_the_mask(patch: Patch) -> None:
    right = arm_fixups.read_status

    def wrong(target: int) -> arm_fixups.Template:
        words = right(target).words
        return replace(right(target), words=(*words[:4], *words[6:]))

    patch.setattr(arm_fixups, "read_status", wrong)


def vectors_that_stay(patch: Patch) -> None:
    patch.setitem(arm_registers._WRITES, "VBAR", lambda _context, _value: None)


def domains_that_are_not_read(patch: Patch) -> None:
    right = arm_registers.read_register
    patch.setattr(arm_registers, "read_register", lambda context, name: 0 if name == "DACR" else right(context, name))


# -- MIPS32 -----------------------------------------------------------------------------------------


def di_that_enables(patch: Patch) -> None:
    right = mips_words.store

    def wrong(source: int, address: int) -> int:
        return right(mips_words.SP if address == mips._ENABLED and not source else source, address)

    patch.setattr(mips_words, "store", wrong)


def epc_written_to_another(patch: Patch) -> None:
    patch.setitem(abi.MIPS_WRITABLE, "EPC", abi.MIPS_WRITABLE["EntryLo1"])


def status_without_the_enable(patch: Patch) -> None:
    right = mips_fixups.read_status

    def wrong(target: int) -> mips_fixups.Template:
        words = right(target).words
        return replace(right(target), words=(*words[:4], *words[5:]))

    patch.setattr(mips_fixups, "read_status", wrong)


def identity_of_another(patch: Patch) -> None:
    patch.setitem(mips_cpu._READERS, "PRId", lambda _cpu: mips_identity.PRID ^ 1)


def wired_that_is_forgotten(patch: Patch) -> None:
    patch.setitem(mips_cpu._WRITERS, "Wired", lambda _cpu, _value: None)


@dataclass(frozen=True)
class Fault:
    """What is done wrong, where it must show, and what may be blamed."""

    isa: str
    damage: Callable[[Patch], None]
    mode: str
    steps: frozenset[str]
    """Steps of the guest whose word in the log may be the first to be wrong."""
    instructions: frozenset[str] = frozenset()
    """Table rows of the sites that may be blamed, of fixups."""


def fault(isa: str, damage: Callable[[Patch], None], mode: str, steps: str, instructions: str = "") -> Fault:
    return Fault(isa, damage, mode, frozenset(steps.split("|")), frozenset(filter(None, instructions.split("|"))))


FAULTS = (
    fault("i386", cli_that_does_not_clear, "inline", "cli", "CLI"),
    fault("i386", pushf_with_the_real_flag, "inline", "cli"),
    fault("i386", control_register_that_is_another, "inline", "cr0"),
    fault("i386", selector_with_its_real_ring, "inline", "cs", "MOV r, Sreg"),
    fault("armv7", cps_that_does_the_opposite, "inline", "cpsid", "CPSID|CPSIE"),
    fault("armv7", status_that_loses_a_register, "inline", "registers", "MRS CPSR"),
    fault("armv7", status_without_the_mask, "inline", "cpsid"),
    fault("armv7", vectors_that_stay, "trap", "vbar"),
    fault("armv7", domains_that_are_not_read, "trap", "dacr"),
    fault("mips32", di_that_enables, "inline", "di", "DI"),
    fault("mips32", epc_written_to_another, "inline", "EPC", "MTC0 EPC"),
    fault("mips32", status_without_the_enable, "inline", "ei"),
    fault("mips32", identity_of_another, "trap", "PRId"),
    fault("mips32", wired_that_is_forgotten, "trap", "Wired"),
)


@pytest.mark.parametrize("mode", ["trap", "inline"])
def test_a_tiny_guest_does_the_same_in_every_mode(tiny: tuple[str, Verification], mode: str) -> None:
    _name, verification = tiny
    comparison = run_and_compare(verification, OPTIONS, mode)
    assert comparison.passed
    assert verification.reference.mode == "native"


@pytest.mark.parametrize("one", FAULTS, ids=lambda one: f"{one.isa}-{one.damage.__name__}")
def test_what_is_wrong_is_caught_where_it_is(one: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    verification = reference(one.isa)
    one.damage(monkeypatch)
    comparison = run_and_compare(verification, OPTIONS, one.mode)
    assert not comparison.passed
    memory = next(finding.result.divergence for finding in comparison.findings if finding.rule.name == "memory")
    assert memory is not None
    assert memory.rewritten is not None
    assert memory.rewritten.address is not None
    assert GUESTS[one.isa][0].step(memory.rewritten.address) in one.steps
    if one.instructions:
        found = blame(verification, OPTIONS).site
        assert found is not None
        assert found.instruction in one.instructions
