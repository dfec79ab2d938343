"""The x86 ladder: where a fixup finds room, what it declares, and why not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from iced_x86 import Decoder, Mnemonic

from bt.pagescan import PAGE
from bt.tactics.tactics import Choice, Placing, Tactic
from bt.tactics.x86.choose import WindowDraft, choose
from bt.tactics.x86.pagescan import scan_page
from bt.tactics.x86.window import Ground
from emulator.isa.operation import Operation
from paravirt.abi import FIXUP_BASE
from paravirt.translator import Fixup

SITE_PAGE = 0xFFFF_FFFF_8100_0000
RDMSR, WRMSR, OUT, SWAPGS, IRETQ, HLT = b"\x0f\x32", b"\x0f\x30", b"\xee", b"\x0f\x01\xf8", b"\x48\xcf", b"\xf4"


def ground(code: bytes, targets: Sequence[int] = (), taken: Sequence[int] = (), guarded: Sequence[int] = ()) -> Ground:
    page = code.ljust(PAGE, b"\xc3")
    marks = [sum(1 << at for at in places) for places in (targets, taken, guarded)]
    scan = scan_page(page, b"", 0)
    return Ground(SITE_PAGE, page, b"", scan.boundaries, marks[0], marks[1], known=True, guarded=marks[2])


def climb(code: bytes, index: int = 0, strategy: str = "auto", used: int = 0, **marks: Sequence[int]) -> Choice:
    place = ground(code, **marks)
    return choose(place, scan_page(place.code, b"", 0).sites[index], strategy, used)


def placed(choice: Choice) -> tuple[Fixup, dict[int, bytes]]:
    assert isinstance(choice.draft, WindowDraft), choice.refused
    fixup, patches = choice.draft.place(FIXUP_BASE, SITE_PAGE)
    assert len(fixup.code) == choice.draft.size
    return fixup, {patch.offset: patch.code for patch in patches}


def test_any_instruction_can_be_a_hypercall_that_names_it() -> None:
    choice = climb(WRMSR + b"\x90" * 4)
    assert (choice.tactic, choice.placing) == (Tactic.HYPERCALL, Placing.DISPLACED)
    fixup, patches = placed(choice)
    ((at, call),) = fixup.hypercalls.items()
    assert (at, fixup.code[:1]) == (FIXUP_BASE, HLT)
    assert (call.site, call.operation, call.instruction) == (
        SITE_PAGE, Operation.WRITE_MODEL_SPECIFIC_REGISTER, WRMSR,
    )  # fmt: skip
    assert call.resume == FIXUP_BASE + 1
    assert patches[0][:1] == b"\xe9"


@pytest.mark.parametrize("strategy", ["inline", "trap"])
def test_only_strategies_that_allow_hypercalls_make_them(strategy: str) -> None:
    assert climb(WRMSR + b"\x90" * 4, strategy=strategy).tactic is Tactic.NATIVE


def test_what_can_be_done_in_the_guest_is_not_asked_for_unless_that_is_wanted() -> None:
    code = b"\xfa" + b"\x0f\x1f\x40\x00" + b"\xc3"
    assert climb(code).tactic is Tactic.INLINE
    assert climb(code, strategy="hypercall").tactic is Tactic.HYPERCALL


def test_neighbours_before_a_site_make_room_where_those_behind_cannot() -> None:
    code = b"\xba\xf8\x03\x00\x00" + OUT + b"\xc3"  # mov edx, 0x3f8; out dx, al; ret
    choice = climb(code, targets=[6])
    assert (choice.tactic, choice.start, choice.end) == (Tactic.HYPERCALL, 0, 6)
    fixup, _ = placed(choice)
    assert fixup.code.startswith(code[:5] + HLT)
    ((_, call),) = fixup.hypercalls.items()
    assert call.site == SITE_PAGE + 5, "a fault shows the instruction's own address"


def test_what_comes_before_stays_where_something_leads_to_the_site() -> None:
    code = b"\xba\xf8\x03\x00\x00" + OUT + b"\xc3"
    assert climb(code, targets=[5, 6]).tactic is Tactic.NATIVE


def test_a_short_jump_leads_to_fill_that_holds_the_long_one() -> None:
    code = RDMSR + b"\xc3" + b"\x90" * 20 + b"\xc3" + b"\xcc" * 8
    choice = climb(code, targets=[2])
    assert choice.placing is Placing.PADDING
    assert (choice.start, choice.end) == (0, 2)
    _, patches = placed(choice)
    assert patches[0] == b"\xeb" + bytes((24 - 2,))
    assert patches[24][:1] == b"\xe9"
    assert len(patches[24]) == 5


@pytest.mark.parametrize(
    ("used", "marks"),
    [
        (0, {"targets": [2, 26, 31]}),
        (0, {"targets": [2], "taken": [26, 31]}),
        (0x1F << 24 | 0xF << 29, {"targets": [2]}),
    ],
)
def test_fill_that_something_leads_to_or_holds_is_no_room(used: int, marks: dict[str, Sequence[int]]) -> None:
    code = RDMSR + b"\xc3" + b"\x90" * 20 + b"\xc3" + b"\xcc" * 9
    choice = climb(code, 0, "auto", used, **marks)
    assert choice.tactic is Tactic.NATIVE
    assert "no fill within a short jump's reach" in choice.refused


def test_fill_out_of_a_short_jumps_reach_is_no_room() -> None:
    assert climb(RDMSR + b"\xc3" + b"\x90" * 130 + b"\xcc" * 8, targets=[2]).tactic is Tactic.NATIVE


def test_instructions_that_stand_together_are_one_fixup() -> None:
    choice = climb(RDMSR + WRMSR + b"\x90\xc3")
    assert choice.placing is Placing.CLUSTER
    fixup, _ = placed(choice)
    assert [call.site - SITE_PAGE for call in fixup.hypercalls.values()] == [0, 2]


def test_no_patch_covers_what_another_holds() -> None:
    assert "another patch holds" in climb(RDMSR + b"\x90" * 4, used=1 << 3).refused


def test_an_idle_processor_waits_where_it_stands() -> None:
    assert "woken where it waits" in climb(HLT + b"\x90" * 5).refused


def test_a_fault_that_the_guest_mends_leads_back_to_the_beginning_of_a_fixup_or_there_is_none() -> None:
    lgdt = b"\x0f\x01\x10"  # lgdt [rax]
    assert climb(lgdt + b"\x90\x90").tactic is Tactic.HYPERCALL
    alone = climb(b"\x89\xc3" + lgdt + b"\xc3", targets=[5])
    assert alone.tactic is Tactic.NATIVE
    assert "page fault would have to lead into the middle" in alone.refused


def test_an_entry_of_the_exception_table_is_kept_true() -> None:
    """RDMSR from whose fault the kernel recovers may be moved, since its address is told; a load may not."""
    assert climb(b"\xb9\x10\x00\x00\x00" + RDMSR + b"\xc3", targets=[7], guarded=[5]).tactic is Tactic.HYPERCALL
    assert climb(RDMSR + b"\x48\x8b\x03\xc3", guarded=[2]).tactic is Tactic.NATIVE
    assert climb(RDMSR + b"\x48\x8b\x03\xc3", guarded=[0]).tactic is Tactic.NATIVE


def test_nothing_is_tried_before_what_changes_where_addresses_lead() -> None:
    """swapgs; mov gs:[0x6014], rsp: the address is another one behind SWAPGS."""
    choice = climb(SWAPGS + bytes.fromhex("65 48 89 24 25 14 60 00 00") + b"\xc3")
    assert choice.tactic is Tactic.NATIVE
    assert "changes before" in choice.refused


def test_behind_a_return_from_an_exception_only_fill_may_be_covered() -> None:
    assert climb(IRETQ + b"\xcc" * 6).tactic is Tactic.HYPERCALL
    assert "a branch follows it" in climb(IRETQ + b"\x90\x55\x50\x51").refused


def test_a_call_that_ends_a_window_leaves_the_address_behind_it() -> None:
    choice = climb(b"\xfa\xe8\x10\x00\x00\x00\xc3")
    assert (choice.tactic, choice.end) == (Tactic.INLINE, 6)
    fixup, _ = placed(choice)
    assert fixup.code[-10:-5] == b"\x68" + (SITE_PAGE + 6 & 0xFFFF_FFFF).to_bytes(4, "little")
    assert fixup.code[-5:-4] == b"\xe9"


def test_a_fixup_declares_the_words_it_uses_up() -> None:
    choice = climb(b"\x9c" + b"\x90" * 5)
    assert choice.draft is not None
    assert choice.draft.clobbers == ("scratch word 0", "scratch word 1")
    hypercall = climb(WRMSR + b"\x90" * 4)
    assert hypercall.draft is not None
    assert hypercall.draft.clobbers == ()


def test_every_refusal_is_told_once_for_each_way() -> None:
    refused = climb(b"\x89\xc3" + RDMSR + b"\xc3", targets=[4]).refused
    ways = [part.split(": ")[0] for part in refused.split("; ")]
    assert len(ways) == len(set(ways))


@pytest.mark.parametrize(
    ("code", "length"), [(b"\x0f\x09", 2), (b"\x0f\x08", 2), (b"\xf3\x0f\x09", 3), (b"\x48\x0f\x09", 3)]
)
def test_what_means_nothing_to_a_guest_is_replaced_where_it_stands(code: bytes, length: int) -> None:
    """WBINVD, INVD, WBNOINVD: even where the kernel itself patches what follows."""
    choice = climb(code + b"\xc3", targets=[length], taken=[length])
    assert (choice.tactic, choice.draft, len(choice.code)) == (Tactic.REPLACED, None, length)
    instruction = Decoder(64, choice.code).decode()
    assert (instruction.len, instruction.mnemonic) == (length, Mnemonic.NOP)
    assert climb(code + b"\xc3", strategy="trap").tactic is Tactic.NATIVE
