"""A64 veneers, executed: a guest linked out of reach from the fixups, under the hypervisor, beside traps alone."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from bt.image import Image, from_bytes
from bt.loadtime import LoadTimeTranslator
from bt.planner import plan
from bt.scan import scan
from bt.tactics.aarch64.far import VENEER_SIZE, far_branch
from bt.tactics.tactics import OutOfReach, Placing, Tactic
from emulator.isa.aarch64.encoding import NOP, mrs, msr
from emulator.isa.aarch64.registers import BY_NAME
from emulator.isa.aarch64.room import CODE, DATA
from paravirt import abi
from tests.bt.image.image_files import Part, make_elf
from tests.paravirt.aarch64.aarch64_tiny import OFF, Guest, load

LDTR, STTR, RET, TLBI = 0xF840_0820, 0xF800_0820, 0xD65F_03C0, 0xD508_8361
"""ldtr x0, [x1]; sttr x0, [x1]; ret; tlbi vaae1is, x1."""
PADDING = (RET, *[NOP] * (VENEER_SIZE // 4))
SCRATCH = BY_NAME[abi.AARCH64_SCRATCH].encoding


def image_of(words: Sequence[int]) -> Image:
    text = Part(".text", struct.pack(f"<{len(words)}I", *words), CODE, CODE, 5)
    return from_bytes(make_elf([text], CODE, machine=183), "guest")


def run(mode: str, *words: int) -> tuple[list[int], Guest]:
    whole = [*words, *OFF, *PADDING, *PADDING]
    guest = Guest(whole, translator=lambda: LoadTimeTranslator(mode, image_of([*whole, *OFF])))
    return guest.run(), guest


@pytest.mark.parametrize("through", [2, 16])
def test_what_is_out_of_reach_comes_and_goes_by_a_veneer_and_keeps_x16(through: int) -> None:
    words = (*load(1, DATA), *load(16, 0x1_2345_6789), *load(0, 0x55AA), STTR, *load(0, 0), LDTR | through, NOP)
    whole = [*words, *OFF, *PADDING, *PADDING]
    image = image_of(whole)
    assert [(site.tactic, site.placing) for site in plan(image, scan(image), "inline").sites[:2]] == [
        (Tactic.INLINE, Placing.PADDING)
    ] * 2
    trapped, _ = run("trap", *words)
    inline, guest = run("inline", *words)
    assert inline == trapped
    assert inline[through] == 0x55AA
    assert inline[16] == (0x55AA if through == 16 else 0x1_2345_6789)
    assert ("ACCESS_AS_USER", "trap") not in guest.hypervisor.exits.counts


def test_an_access_that_is_refused_is_refused_at_its_site() -> None:
    words = (*load(1, DATA + 0x4000_0000), *load(16, 7), LDTR)
    trapped, first = run("trap", *words)
    inline, second = run("inline", *words)
    assert (inline, first.caught) == (trapped, second.caught)
    assert second.caught[2] == CODE + 4 * 6


def test_a_call_goes_on_behind_its_site_with_x16_as_it_was() -> None:
    words = (*load(16, 0x1_2345_6789), *load(1, 0x77), msr(BY_NAME["CONTEXTIDR_EL1"].encoding, 1), NOP)
    words = (*words, mrs(BY_NAME["CONTEXTIDR_EL1"].encoding, 2), NOP)
    trapped, _ = run("trap", *words)
    called, guest = run("hypercall", *words)
    assert (called, called[2], called[16]) == (trapped, 0x77, 0x1_2345_6789)
    assert sum(count for (_, route), count in guest.hypervisor.exits.counts.items() if route == "hypercall") >= 2


def test_the_guest_is_not_interrupted_while_a_register_is_kept() -> None:
    """Where the guest comes back is named as a call's, and the fixup's first word is never reached."""
    image = image_of([*load(1, DATA), LDTR, *OFF, *PADDING])
    found = plan(image, scan(image), "inline")
    [site] = [one for one in found.sites if one.instruction.startswith("LDTR")]
    [fixup] = [one for one in found.fixups if one.address == site.fixup]
    [step] = site.steps
    assert site.new == struct.pack("<I", 0x1400_0000 | step - site.address >> 2 & 0x3FF_FFFF)
    [veneer] = [change for change in found.changes if change.address == step]
    assert veneer.new[:20] == far_branch(SCRATCH, fixup.address + 4)
    back = step + 20
    assert veneer.new[20:24] == fixup.code[4:8] == struct.pack("<I", mrs(SCRATCH, 16))
    assert fixup.code[-20:] == far_branch(SCRATCH, back)
    assert [call.address for call in fixup.calls if call.resume == back] == [back]
    assert abi.AARCH64_SCRATCH in fixup.clobbers


def test_an_interrupt_at_the_way_back_waits_for_the_instruction_behind_it() -> None:
    words = [*load(1, DATA), LDTR, NOP, *OFF, *PADDING]
    image = image_of(words)
    [site] = [one for one in plan(image, scan(image), "inline").sites if one.instruction.startswith("LDTR")]
    guest = Guest(words[: -len(PADDING)] + list(PADDING), translator=lambda: LoadTimeTranslator("inline", image))
    hypervisor = guest.hypervisor
    guest.run()
    hypervisor.vcpu.pc = site.steps[0] + 20
    assert hypervisor.vcpu.pc in hypervisor.code.hypercalls
    before = dict(hypervisor.exits.counts)
    hypervisor._deliver_waiting()
    assert hypervisor.exits.counts == before
    assert hypervisor.vcpu.pc == site.steps[0] + 20


def test_an_address_that_is_not_48_bits_is_refused() -> None:
    with pytest.raises(OutOfReach):
        far_branch(SCRATCH, 0x1234_0000_0000_0000)
