"""What fixups do in the guest where exits are dear: which windows there are, and that others stay as they were."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from iced_x86 import Decoder, FlowControl, Mnemonic

from bt.pagescan import PAGE
from bt.tactics.tactics import ONLY_PLANT, PLANT, Choice, Tactic
from bt.tactics.x86 import forms_dear
from bt.tactics.x86.choose import WindowDraft, choose
from bt.tactics.x86.forms64 import FORMS_64
from bt.tactics.x86.forms_dear import CODES, DearForms
from bt.tactics.x86.pagescan import scan_page
from bt.tactics.x86.template import Template
from bt.tactics.x86.window import Forms, Ground, Refused, Want, compose
from emulator.isa.operation import Operation
from paravirt.abi import FIXUP_BASE

SITE_PAGE = 0xFFFF_FFFF_8100_0000
SWAPGS, RDTSC, WRMSR, IN, MOV_AX_FS = b"\x0f\x01\xf8", b"\x0f\x31", b"\x0f\x30", b"\xec", b"\x66\x8c\xe0"
SYSRET, IRETQ = b"\x48\x0f\x07", b"\x48\xcf"
NOP = b"\x90"
ALL = DearForms(frozenset(CODES))
TEMPLATES = (
    forms_dear.swap_gs(),
    forms_dear.read_time_stamp(),
    forms_dear.read_port(IN),
    forms_dear.write_model_specific_register(WRMSR),
    forms_dear.read_selector(9, 4, 2),
    forms_dear.read_selector(3, 1, 4),
    forms_dear.invalidate_page(Decoder(64, b"\x0f\x01\x3f").decode(), b"\x0f\x01\x3f"),
)


INVLPG = b"\x0f\x01\x3f"
"""invlpg [rdi]"""
TEST = bytes.fromhex("f644242004 7502")
"""test byte [rsp + 32], 4; jne"""


def climb(code: bytes, strategy: str, forms: Forms, taken: Sequence[int] = (), guarded: Sequence[int] = ()) -> Choice:
    page = code.ljust(PAGE, b"\xc3")
    scan = scan_page(page, b"", 0)
    marks = [sum(1 << at for at in places) for places in (taken, guarded)]
    place = Ground(SITE_PAGE, page, b"", scan.boundaries, 0, marks[0], known=True, guarded=marks[1], forms=forms)
    return choose(place, scan.sites[0], strategy)


def names(choice: Choice) -> list[str]:
    assert isinstance(choice.draft, WindowDraft), choice.refused
    return [template.name for _, template in choice.draft.window.pieces]


@pytest.mark.parametrize("code", [SWAPGS, RDTSC, WRMSR, IN, INVLPG])
def test_each_is_done_in_the_guest_only_where_it_is_asked_for(code: bytes) -> None:
    assert climb(code + NOP * 5, "inline", ALL).draft is not None
    assert climb(code + NOP * 5, "inline", FORMS_64).draft is None
    assert climb(code + NOP * 5, "inline", DearForms(frozenset())).draft is None


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_a_template_is_whole_instructions_that_leave_the_flags_alone(template: Template) -> None:
    decoder = Decoder(64, template.code)
    instructions = list(decoder)
    assert sum(len(one) for one in instructions) == len(template.code)
    assert not any(one.mnemonic == Mnemonic.INVALID or one.rflags_modified for one in instructions)
    ends = {0}
    for one in instructions:
        ends.add(one.next_ip)
    for one in instructions:
        if one.flow_control in (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CONDITIONAL_BRANCH):
            assert one.near_branch_target in ends
    assert all(template.code[call.offset] == 0xF4 for call in template.calls)


@pytest.mark.parametrize("code", [RDTSC + NOP * 3, MOV_AX_FS + NOP * 2])
def test_what_needs_a_trap_gets_a_fixup_that_was_made_for_that_or_the_trap(code: bytes) -> None:
    assert climb(code, PLANT, ALL).tactic is Tactic.INLINE
    assert climb(code, PLANT, FORMS_64).tactic is Tactic.TRAP
    assert climb(code, ONLY_PLANT, ALL).tactic is Tactic.TRAP


def test_selectors_are_read_as_they_stand_where_the_engine_shows_them() -> None:
    shown = DearForms(frozenset(CODES) - {Operation.READ_SEGMENT_SELECTOR})
    assert climb(MOV_AX_FS + NOP * 2, "inline", shown).tactic is Tactic.SAME
    assert names(climb(MOV_AX_FS + NOP * 2, "inline", ALL)) == ["read a copied selector"]


def test_a_fixup_may_begin_with_a_branch_over_its_site() -> None:
    # je 0x40; swapgs, with a place of the kernel's own behind it: as where Linux enters by an exception.
    choice = climb(b"\x74\x3e" + SWAPGS + NOP * 3, "inline", ALL, taken=(5,))
    assert names(choice) == ["leave by a branch", "swap GS base"]
    assert isinstance(choice.draft, WindowDraft)
    fixup, _ = choice.draft.place(FIXUP_BASE, SITE_PAGE)
    first, leave = list(Decoder(64, fixup.code, ip=FIXUP_BASE))[:2]
    assert (first.mnemonic, first.near_branch_target) == (Mnemonic.JNE, leave.next_ip)
    assert leave.near_branch_target == SITE_PAGE + 0x40


def test_nothing_is_tried_that_is_reached_only_where_the_branch_is_not_taken() -> None:
    # je; in al, dx; mov [gs:0], rax: the store is tried at the fixup's begin, so that must be the IN.
    code = b"\x74\x3e" + IN + b"\x65\x48\x89\x04\x25\x00\x00\x00\x00"
    assert names(climb(code, "inline", ALL))[-2:] == ["read a port", "displaced"]
    assert "leave by a branch" not in names(climb(code, "inline", ALL))
    page = Ground(SITE_PAGE, code.ljust(PAGE, b"\xc3"), b"", 0x100D, 0, 0, known=True, forms=ALL)
    with pytest.raises(Refused, match="a branch leads away"):
        compose(page, 0, Want(site=2))


def test_wrmsr_stays_findable_for_the_kernels_own_table_of_faults() -> None:
    # mov eax, esi; mov ecx, edi; wrmsr; then a place of the kernel's own
    choice = climb(b"\x89\xf0\x89\xf9" + WRMSR + b"\x66\x90", "inline", ALL, taken=(6,), guarded=(4,))
    assert isinstance(choice.draft, WindowDraft), choice.refused
    fixup, _ = choice.draft.place(FIXUP_BASE, SITE_PAGE)
    (call,) = fixup.hypercalls.values()
    assert (call.site, call.instruction) == (SITE_PAGE + 4, WRMSR)


def test_swapgs_and_the_sysret_that_a_jump_leads_to_are_one_fixup() -> None:
    code = SWAPGS + b"\xeb\x07" + bytes(7) + SYSRET
    choice = climb(code, "inline", ALL)
    assert names(choice) == ["return to user code"]
    assert (choice.start, choice.end) == (0, 5)


@pytest.mark.parametrize("code", [SWAPGS + b"\xeb\x07" + bytes(7) + IRETQ, SWAPGS + b"\xeb\xf9" + bytes(10)])
def test_a_jump_to_anything_else_is_no_part_of_such_a_fixup(code: bytes) -> None:
    assert "return to user code" not in names(climb(code, "inline", ALL))


RETURNS = DearForms(frozenset(CODES) | {Operation.RETURN_FROM_EXCEPTION})
AWAY = SWAPGS + b"\xeb\x07" + bytes(7)


@pytest.mark.parametrize(
    "behind", [IRETQ, TEST + IRETQ, b"\xeb\x02" + bytes(2) + TEST + IRETQ, b"\xe9\0\0\0\0" + TEST + IRETQ]
)
def test_swapgs_tries_the_iretq_that_jumps_lead_to_where_the_engine_does_such(behind: bytes) -> None:
    choice = climb(AWAY + behind, "inline", RETURNS)
    assert names(choice) == ["swap GS base, and return"]
    assert (choice.start, choice.end) == (0, 5)
    assert names(climb(AWAY + behind, "inline", ALL)) == ["swap GS base"]
    assert isinstance(choice.draft, WindowDraft)
    fixup, _ = choice.draft.place(FIXUP_BASE, SITE_PAGE)
    assert not fixup.hypercalls, "what it does not do, the guest's own IRETQ does"
    last = list(Decoder(64, fixup.code, ip=FIXUP_BASE))[-1]
    assert last.near_branch_target == SITE_PAGE + 12


@pytest.mark.parametrize(
    "behind", [SYSRET, TEST[:-1] + b"\x03" + IRETQ, NOP + IRETQ, b"\xeb\xf0", b"\xeb\0" * 4 + IRETQ, b"\xe9\0\0\x01\0"]
)
def test_it_does_not_where_anything_else_comes(behind: bytes) -> None:
    assert "swap GS base, and return" not in names(climb(AWAY + behind, "inline", RETURNS))


@pytest.mark.parametrize("code", ["0f01 3c24", "0f01 7d00", "410f01 39", "0f01 3d00000000", "650f01 3f"])
def test_pages_are_invalidated_so_where_a_plain_register_names_them(code: str) -> None:
    assert climb(bytes.fromhex(code) + NOP * 5, "inline", ALL).draft is None


def test_the_hypervisor_invalidates_what_the_guest_does_not() -> None:
    choice = climb(INVLPG + NOP * 5, "inline", ALL)
    assert isinstance(choice.draft, WindowDraft)
    fixup, _ = choice.draft.place(FIXUP_BASE, SITE_PAGE)
    ((at, call),) = fixup.hypercalls.items()
    assert (call.instruction, call.resume) == (INVLPG, at + 1)
    assert decoded_address(fixup.code, at) == at


def decoded_address(code: bytes, halt: int) -> int:
    """What the fixup says the HLT is at."""
    for one in Decoder(64, code, ip=FIXUP_BASE):
        if one.mnemonic == Mnemonic.LEA and one.is_ip_rel_memory_operand:
            return int(one.ip_rel_memory_address)
    return halt - 1


def test_what_returns_to_user_code_does_so_by_whole_instructions_with_the_hypervisor_last() -> None:
    template = forms_dear.return_from_system_call(SYSRET)
    assert template.ends
    instructions = list(Decoder(64, template.code))
    assert sum(len(one) for one in instructions) == len(template.code) == template.calls[0].offset + 1
    last = {len(template.code) - 9}
    branches = [one for one in instructions if one.flow_control is FlowControl.CONDITIONAL_BRANCH]
    assert {one.near_branch_target for one in branches} == last, "each leads to RAX's return before the call"
    assert len(branches) == 4
