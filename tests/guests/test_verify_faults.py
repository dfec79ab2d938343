"""A deliberately wrong fixup, stub or trap is caught by verification, and its place is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bt.image import from_bytes, load
from bt.session import Options
from bt.tactics import page, tactics
from bt.tactics.tactics import Tactic
from bt.tactics.x86 import assemble as asm
from bt.tactics.x86 import control_registers, interrupt_flag
from bt.tactics.x86.template import DELTA, Template, control_register, joined, scratch
from bt.verify import Verification, run_and_compare, verify
from bt.verify.blame import blame
from bt.verify.guest import Guest, of
from emulator.machine import Limits
from paravirt.abi import INTERRUPTS_DISABLED, INTERRUPTS_ENABLED
from tests.bt.verify.tiny_guest import STACK, STACK_SIZE, step, tiny_guest

SAMPLE = Path(__file__).parents[2] / "samples" / "x86_64" / "sample.elf"
LIMITS = Limits(host_seconds=20)
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def tiny() -> Verification:
    volatile = ((STACK - STACK_SIZE, STACK_SIZE),)
    guest = Guest("tiny", from_bytes(tiny_guest(), "tiny"), memory=32 << 20, volatile=volatile)
    return verify(guest, tiny_options(), ())


def tiny_options() -> Options:
    return Options(memory=32 << 20, limits=LIMITS, cache=False)


def cli_that_does_not_clear(patch: Patch) -> None:
    wrong = Template("wrong", asm.store_constant(DELTA, INTERRUPTS_ENABLED), takes_back=True)
    patch.setattr(interrupt_flag, "disable", lambda: wrong)


def sti_that_does_not_set(patch: Patch) -> None:
    right = interrupt_flag.enable()
    wrong = Template("wrong", asm.store_constant(DELTA, INTERRUPTS_DISABLED), finish=right.finish)
    patch.setattr(interrupt_flag, "enable", lambda before_halt=False: wrong)


def sti_that_drops_the_hypercall(patch: Patch) -> None:
    wrong = Template("wrong", interrupt_flag.enable().code)
    patch.setattr(interrupt_flag, "enable", lambda before_halt=False: wrong)


def pushf_with_the_real_flag(patch: Patch) -> None:
    patch.setattr(interrupt_flag, "read_flags", lambda: Template("wrong", asm.PUSHFQ))


def coalesced_pushf_with_the_real_flag(patch: Patch) -> None:
    patch.setattr(interrupt_flag, "read_flags_to", lambda register: Template("wrong", asm.PUSHFQ + asm.pop(register)))


def coalesced_pushf_that_loses_a_register(patch: Patch) -> None:
    right = interrupt_flag.read_flags_to

    def wrong(register: int) -> Template:
        other = asm.RAX if register == asm.RCX else asm.RCX
        restore = asm.load(other, scratch(0))
        template = right(register)
        assert restore in template.code
        return Template("wrong", template.code.replace(restore, b""), scratch=template.scratch)

    patch.setattr(interrupt_flag, "read_flags_to", wrong)


def coalesced_pushf_that_changes_flags(patch: Patch) -> None:
    right = interrupt_flag.read_flags_to
    clc = b"\xf8"
    patch.setattr(interrupt_flag, "read_flags_to", lambda register: Template("wrong", right(register).code + clc))


def popf_that_does_not_take_the_flag(patch: Patch) -> None:
    patch.setattr(interrupt_flag, "write_flags", lambda: Template("wrong", asm.POPFQ))


def popf_that_loses_the_arithmetic_flags(patch: Patch) -> None:
    right = interrupt_flag.write_flags()
    restore, nop = asm.load(asm.RCX, scratch(0)), b"\x90"
    assert right.code.count(restore + asm.POPFQ) == 1
    code = right.code.replace(restore + asm.POPFQ, restore + nop) + asm.stack_address(asm.RSP, 8)
    wrong = Template("wrong", code, right.calls, right.scratch, finish=right.finish)
    patch.setattr(interrupt_flag, "write_flags", lambda: wrong)


def popf_that_drops_the_hypercall(patch: Patch) -> None:
    save, restore = asm.store(scratch(0), asm.RCX), asm.load(asm.RCX, scratch(0))
    take = joined((asm.load_stack(asm.RCX, 0), asm.and_constant(asm.RCX, 0x200), asm.subtract_constant(asm.RCX, 0x200)))
    code = joined((save, take, asm.store(DELTA, asm.RCX), restore, asm.POPFQ))
    patch.setattr(interrupt_flag, "write_flags", lambda: Template("wrong", code, scratch=frozenset({0})))


def control_register_read_that_is_another(patch: Patch) -> None:
    def wrong(register: int, number: int) -> Template:
        return Template("wrong", asm.load(register, control_register(number ^ 2)))

    patch.setattr(control_registers, "read_control_register", wrong)


@dataclass(frozen=True)
class Fault:
    """A wrong fixup, where it must show, and whose fixup may be named for it."""

    damage: Callable[[Patch], None]
    steps: frozenset[str]
    """Steps of the tiny guest whose word in the log is the first to be wrong."""
    instructions: frozenset[str]
    """Table rows of the sites that may be blamed."""


FAULTS = (
    Fault(cli_that_does_not_clear, frozenset({"cli"}), frozenset({"CLI"})),
    Fault(sti_that_does_not_set, frozenset({"sti"}), frozenset({"STI"})),
    Fault(sti_that_drops_the_hypercall, frozenset({"sti pending"}), frozenset({"STI"})),
    Fault(pushf_with_the_real_flag, frozenset({"pushf"}), frozenset({"PUSHF"})),
    Fault(coalesced_pushf_with_the_real_flag, frozenset({"cli"}), frozenset({"PUSHF"})),
    Fault(coalesced_pushf_that_loses_a_register, frozenset({"registers", "rax"}), frozenset({"PUSHF"})),
    Fault(coalesced_pushf_that_changes_flags, frozenset({"flags"}), frozenset({"PUSHF"})),
    Fault(popf_that_does_not_take_the_flag, frozenset({"popf clears"}), frozenset({"POPF"})),
    Fault(popf_that_loses_the_arithmetic_flags, frozenset({"popf clears", "popf arithmetic"}), frozenset({"POPF"})),
    Fault(popf_that_drops_the_hypercall, frozenset({"popf pending"}), frozenset({"POPF"})),
    Fault(control_register_read_that_is_another, frozenset({"cr0"}), frozenset({"MOV r, CR"})),
)


def test_the_tiny_guest_does_the_same_in_every_mode(tiny: Verification) -> None:
    for mode in ("trap", "inline"):
        assert run_and_compare(tiny, tiny_options(), mode).passed


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.damage.__name__)
def test_a_wrong_fixup_is_caught_and_its_site_is_named(
    fault: Fault, tiny: Verification, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault.damage(monkeypatch)
    comparison = run_and_compare(tiny, tiny_options(), "inline")
    assert not comparison.passed
    memory = next(finding.result.divergence for finding in comparison.findings if finding.rule.name == "memory")
    assert memory is not None
    assert memory.rewritten is not None
    assert memory.rewritten.address is not None
    assert step(memory.rewritten.address) in fault.steps
    found = blame(tiny, tiny_options()).site
    assert found is not None
    assert found.instruction in fault.instructions


ON_THE_SAMPLE = (
    (cli_that_does_not_clear, "only=flags", "FAIL flags.pushf-after-cli"),
    (coalesced_pushf_with_the_real_flag, "only=flags", "FAIL flags.pushf-after-cli"),
    (control_register_read_that_is_another, "only=registers", "FAIL registers.control"),
)
"""Fixups that the sample uses inline; for the others it has no site with room behind it."""


@pytest.mark.parametrize(("damage", "append", "check"), ON_THE_SAMPLE, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_fixup_is_caught_on_the_sample(
    damage: Callable[[Patch], None], append: str, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = of(load(SAMPLE))
    options = Options(memory=guest.memory, command_line=append, limits=LIMITS, cache=False)
    right = verify(guest, options, ("inline",))
    assert right.passed
    damage(monkeypatch)
    wrong = run_and_compare(right, options, "inline")
    assert not wrong.passed
    assert check in wrong.pair.rewritten.console.decode(errors="replace")


def leave(codes: set[str]) -> Callable[[Patch], None]:
    """No trap is planted on instructions whose table row is one of `codes`."""
    from emulator.isa.x86.table import ROW_OF_CODE

    def damage(patch: Patch) -> None:
        as_it_is = page._decide

        def decide(*arguments: Any) -> page.Placed:
            one = as_it_is(*arguments)
            hit = one.choice.tactic is Tactic.TRAP and ROW_OF_CODE[one.choice.site.code].name in codes
            return replace(one, patches=()) if hit else one

        patch.setattr(page, "_decide", decide)

    return damage


def one_byte_off(patch: Patch) -> None:
    """Every trap stands on the second byte of its instruction, where there is one."""

    as_it_is = page._decide

    def decide(*arguments: Any) -> page.Placed:
        one = as_it_is(*arguments)
        site = one.choice.site
        if one.choice.tactic is Tactic.TRAP and site.length > 1:
            return replace(one, patches=(tactics.Patch(site.offset + 1, asm.HLT),))
        return one

    patch.setattr(page, "_decide", decide)


TRAPS = (
    ("POPF", leave({"POPF"}), "only=flags", "flags.popf"),
    ("PUSHF", leave({"PUSHF"}), "only=flags", "flags.p"),
    ("SGDT", leave({"SGDT"}), "only=tables", "tables.sgdt"),
    ("mov from CS", leave({"MOV r, Sreg"}), "only=segments", "segments.mov-from-cs"),
    ("one byte off", one_byte_off, "only=tables", ""),
)


@pytest.mark.parametrize(("name", "damage", "append", "check"), TRAPS, ids=[trap[0] for trap in TRAPS])
def test_a_trap_that_is_missing_or_misplaced_is_caught_on_the_sample(
    name: str,
    damage: Callable[[Patch], None],
    append: str,
    check: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = of(load(SAMPLE))
    options = Options(memory=guest.memory, command_line=append, limits=LIMITS, cache=False)
    right = verify(guest, options, ("trap",))
    assert right.passed
    damage(monkeypatch)
    wrong = run_and_compare(right, options, "trap")
    first = wrong.first
    assert first is not None
    assert first.result.divergence is not None
    assert check in wrong.pair.rewritten.console.decode(errors="replace")
    assert first.result.divergence.progress is not None
