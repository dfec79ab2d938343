"""Single steps that a POPF begins: they begin behind the next instruction, whether a fixup does the POPF or not."""

from __future__ import annotations

import pytest

from bt.image import from_bytes
from bt.loadtime import LoadTimeTranslator
from bt.planner import plan
from bt.scan import scan
from bt.tactics.tactics import Tactic
from tests.bt.image.image_files import Part, make_elf
from tests.paravirt.i386 import guest

BEGINS = bytes.fromhex("0f011df81f0000 6802010000 b905000000 9d 90 b801000000 eb00 40 fa f4 ebf3")
"""lidt [1FF8H]; push 102H; mov ecx, 5; popf; next: nop; mov eax, 1; jmp past; past: inc eax; cli; hlt; jmp next: there
is no room behind POPF."""


@pytest.mark.parametrize("mode", ["trap", "inline", "hypercall", "auto"])
def test_the_first_step_ends_behind_the_instruction_that_follows_popf(mode: str) -> None:
    expected = guest.run("native", BEGINS, b"")
    part = Part(".text", BEGINS.ljust(64, b"\xf4"), guest.CODE, guest.CODE, 5)
    image = from_bytes(make_elf([part], guest.CODE, machine=3, bits=32), "guest")
    if mode == "auto":
        [site] = [one for one in plan(image, scan(image), mode).sites if one.instruction == "POPF"]
        assert site.tactic is Tactic.INLINE
    assert expected.general[0] == 0, "the step ended before MOV"
    assert guest.run(mode, BEGINS, b"", LoadTimeTranslator(mode, image)) == expected
