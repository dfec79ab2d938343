"""The run-time translator: right pages, the same every time, and each page looked at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from iced_x86 import Code, Decoder

from bt import manifest
from bt.image import Image, from_bytes, linux_tables
from bt.loadtime import LoadTimeTranslator
from bt.pagecache import PageCache
from bt.pagescan import PAGE
from bt.planner import plan
from bt.rewrite import original, rewrite
from bt.scan import scan
from bt.tactics.tactics import Region
from emulator.errors import UsageError
from emulator.isa.operation import Operation
from paravirt.abi import FIXUP_BASE, SHARED_PAGE
from paravirt.translator import Translation, Translator
from tests.bt.image.image_files import BASE, PHYSICAL
from tests.bt.rewrite.small_kernel import addresses, image, text

NOP5 = b"\x0f\x1f\x44\x00\x00"
INLINED = ("start", "flags", "tight", "control", "loop")
"""Pieces of the small kernel whose first instruction gets a fixup."""
MODULE = 0xFFFF_FFFF_C000_0000


def first_page(mode: str, entry: int = BASE, code: bytes | None = None) -> Translation:
    whole = text() if code is None else code
    return LoadTimeTranslator(mode, image()).translate(BASE, whole[:PAGE], b"", whole[PAGE : PAGE + 15], entry)


def other(translator: LoadTimeTranslator, code: bytes, entry: int = 0, address: int = MODULE) -> Translation:
    """Translate a page that no image knows."""
    return translator.translate(address, code.ljust(PAGE, b"\x90"), b"", b"", address + entry)


def test_it_fulfils_the_protocol() -> None:
    translator: Translator = LoadTimeTranslator("trap")
    assert translator.translate(MODULE, b"\x90" * PAGE, b"", b"", MODULE).sites == 0


def test_trap_mode_changes_first_bytes_of_planted_sites_only() -> None:
    result, at = first_page("trap"), addresses()
    planted = [at["flags"] - BASE, at["sgdt"] - BASE, PAGE - 1]
    changed = [offset for offset in range(PAGE) if result.code[offset] != text()[offset]]
    assert changed == planted
    assert all(result.code[offset] == 0xF4 for offset in planted)
    assert result.fixups == ()
    assert result.sites == len(scan(image()))


def test_the_tail_of_an_instruction_is_no_instruction() -> None:
    """CPUID begins on the first page; its second byte, A2, would begin a MOV on the second."""
    translator = LoadTimeTranslator("trap", image())
    second = translator.translate(BASE + PAGE, text()[PAGE:], text()[PAGE - 15 : PAGE], b"", BASE + PAGE + 1)
    assert second.code == text()[PAGE:]
    assert second.sites == 0


def test_inline_mode_jumps_to_fixups_that_come_back_behind_the_site() -> None:
    result, at = first_page("inline"), addresses()
    assert result.fixups
    for fixup in result.fixups:
        assert FIXUP_BASE <= fixup.address < fixup.address + len(fixup.code) <= SHARED_PAGE
        offset = fixup.site - BASE
        jump = Decoder(64, result.code[offset : offset + 5], ip=fixup.site).decode()
        assert jump.code == Code.JMP_REL32_64
        assert jump.near_branch_target == fixup.address
    sites = {fixup.site for fixup in result.fixups}
    assert sites == {at[name] for name in INLINED}


def test_a_page_is_translated_once_and_its_fixups_are_given_once() -> None:
    translator = LoadTimeTranslator("inline", image())
    whole = text()
    results = [
        translator.translate(BASE, whole[:PAGE], b"", whole[PAGE : PAGE + 15], entry)
        for entry in (BASE, BASE, addresses()["sgdt"])
    ]
    assert len({result.code for result in results}) == 1
    assert [bool(result.fixups) for result in results] == [True, False, False]


def test_equal_arguments_in_equal_order_give_equal_results() -> None:
    assert first_page("inline") == first_page("inline")


def test_a_change_elsewhere_keeps_the_fixups_of_unchanged_sites() -> None:
    translator = LoadTimeTranslator("inline", image())
    whole = text()
    first = translator.translate(BASE, whole[:PAGE], b"", whole[PAGE : PAGE + 15], BASE)
    changed = whole[:0x800] + b"\xfa" + NOP5 + whole[0x806:]
    second = translator.translate(BASE, changed[:PAGE], b"", changed[PAGE : PAGE + 15], BASE)
    assert [fixup.site for fixup in second.fixups] == [BASE + 0x800]
    same = [offset for offset in range(PAGE) if first.code[offset] != second.code[offset]]
    assert set(same) <= set(range(0x800, 0x806))
    third = translator.translate(BASE, whole[:PAGE], b"", whole[PAGE : PAGE + 15], BASE)
    assert (third.code, third.fixups) == (first.code, ())


def test_no_patch_covers_the_place_where_execution_begins() -> None:
    translator = LoadTimeTranslator("inline", image())
    whole, at = text(), addresses()["flags"]
    usual = translator.translate(BASE, whole[:PAGE], b"", whole[PAGE : PAGE + 15], BASE)
    assert usual.code[at - BASE] == 0xE9
    inside = translator.translate(BASE, whole[:PAGE], b"", whole[PAGE : PAGE + 15], at + 1)
    assert inside.code[at - BASE : at - BASE + 2] == b"\xf4\x58", "POP stands, PUSHF traps"
    again = translator.translate(BASE, whole[:PAGE], b"", whole[PAGE : PAGE + 15], BASE)
    assert again.code == usual.code


def test_pristine_pages_are_not_decoded_again() -> None:
    translator = LoadTimeTranslator("trap", image())
    swept = translator.scanned
    whole = text()
    translator.translate(BASE, whole[:PAGE], b"", whole[PAGE : PAGE + 15], BASE)
    assert translator.scanned == swept
    assert translator.cached == 1


def test_a_second_run_scans_nothing(tmp_path: Path) -> None:
    whole = bytearray(text())
    whole[0x800:0x806] = b"\xfa" + NOP5
    counts: list[int] = []
    results: list[Translation] = []
    for _ in range(2):
        translator = LoadTimeTranslator("inline", image(), cache=PageCache(tmp_path))
        results += [
            translator.translate(BASE, data[:PAGE], b"", data[PAGE : PAGE + 15], BASE)
            for data in (text(), bytes(whole))
        ]
        results.append(other(translator, b"\xfa" + NOP5))
        translator.close()
        counts.append(translator.scanned)
    assert counts == [3, 0]
    assert results[:3] == results[3:]


def test_at_its_physical_address_the_image_is_known_and_gets_traps() -> None:
    """A kernel starts on pages mapped one to one; a jump would lead elsewhere when one table serves both addresses."""
    translator = LoadTimeTranslator("inline", image())
    whole = text()
    result = translator.translate(PHYSICAL, whole[:PAGE], b"", whole[PAGE : PAGE + 15], PHYSICAL)
    assert translator.scanned == 1, "the sweep alone"
    assert result.fixups == ()
    at = addresses()["flags"] - BASE
    assert result.code[at] == 0xF4


def test_a_moved_kernel_is_known_where_it_lies() -> None:
    delta = 0x1400_0000
    translator = LoadTimeTranslator("inline", image(), delta)
    whole = text()
    result = translator.translate(BASE + delta, whole[:PAGE], b"", whole[PAGE : PAGE + 15], BASE + delta)
    assert translator.scanned == 1
    assert {fixup.site for fixup in result.fixups} == {addresses()[name] + delta for name in INLINED}


@pytest.mark.parametrize("tail", range(9))
def test_an_unknown_page_is_decoded_with_what_comes_before_it(tail: int) -> None:
    """MOV with a 64-bit constant of PUSHF bytes, `tail` of which are on this page: they are no instructions."""
    stream = b"\x90\x55\x48\x89\xe5\x48\xb8" + b"\x9c" * 8
    cut = len(stream) - tail
    code = (stream[cut:] + b"\x9c\x58").ljust(PAGE, b"\x90")
    translator = LoadTimeTranslator("trap")
    result = translator.translate(MODULE, code, stream[:cut][-15:], b"", MODULE + tail)
    assert result.code[tail] == 0xF4
    assert result.code[:tail] == b"\x9c" * tail


def test_the_page_before_says_where_an_unknown_page_begins() -> None:
    translator = LoadTimeTranslator("trap")
    first = (b"\x90" * (PAGE - 4) + b"\x48\xb8\x9c\x9c")[:PAGE]
    second = (b"\x9c" * 6 + b"\x0f\xa2").ljust(PAGE, b"\x90")
    translator.translate(MODULE, first, b"", second[:15], MODULE)
    result = translator.translate(MODULE + PAGE, second, b"", b"", MODULE + PAGE + 6)
    assert result.code[:8] == b"\x9c" * 6 + b"\xf4\xa2"


def test_what_is_out_of_a_jumps_reach_traps() -> None:
    result = other(LoadTimeTranslator("inline"), b"\x9c\x58\x0f\x1f\x40\x00", address=0xFFFF_8880_0000_0000)
    assert (result.code[:2], result.fixups) == (b"\xf4\x58", ())


def test_a_full_region_means_traps_and_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    translator = LoadTimeTranslator("inline")
    start = translator._arena.region.start
    monkeypatch.setattr(translator._arena, "region", Region(start, start + 40))
    result = other(translator, b"\x9c\x58\x0f\x1f\x40\x00\xfa\x0f\x1f\x40\x00\x66\x90")
    assert [fixup.site for fixup in result.fixups] == [MODULE + 6], "the small fixup fits, the large one does not"
    assert result.code[0] == 0xF4


def test_padding_of_five_bytes_is_left_alone_where_it_may_be_a_jump_label() -> None:
    assert other(LoadTimeTranslator("inline"), b"\xfa" + NOP5).fixups == ()
    assert len(other(LoadTimeTranslator("inline"), b"\xfa\x66\x90\x66\x90").fixups) == 1


def test_enabling_asks_the_hypervisor_only_where_an_interrupt_waits() -> None:
    (fixup,) = other(LoadTimeTranslator("inline"), b"\xfb\x66\x66\x90\x66\x90").fixups
    ((address, call),) = fixup.hypercalls.items()
    assert fixup.code[address - fixup.address] == 0xF4
    assert (call.site, call.operation) == (MODULE, Operation.ENABLE_INTERRUPTS)
    assert call.resume == MODULE + 6


@pytest.mark.parametrize(
    ("code", "address", "entry"),
    [(b"\x90" * 100, MODULE, MODULE), (bytes(PAGE), MODULE + 1, MODULE + 1), (bytes(PAGE), MODULE, MODULE + PAGE)],
)
def test_what_is_no_page_is_refused(code: bytes, address: int, entry: int) -> None:
    with pytest.raises(ValueError, match="cannot be translated"):
        LoadTimeTranslator("trap").translate(address, code, b"", b"", entry)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="trap, hypercall, inline, auto"):
        LoadTimeTranslator("none")


@pytest.mark.parametrize("mode", ["trap", "inline"])
def test_translated_pages_are_those_of_the_rewritten_file(mode: str) -> None:
    one = image()
    data = rewrite(one, plan(one, scan(one), mode))
    loaded, carried = original(from_bytes(data, "out"))
    assert carried is not None
    translator = LoadTimeTranslator(mode, loaded, plan=carried.plan)
    start = loaded.segments[0].file_offset
    fixups: dict[int, bytes] = {}
    for page in (1, 0):  # in another order than the plan was made in
        at = page * PAGE
        result = translator.translate(
            BASE + at, text()[at : at + PAGE], b"", text()[at + PAGE : at + PAGE + 15], BASE + at + page
        )
        assert result.code == data[start + at : start + at + PAGE]
        fixups.update({fixup.address: fixup.code for fixup in result.fixups})
    assert fixups == {fixup.address: fixup.code for fixup in carried.plan.fixups}


def test_a_plan_for_another_mode_or_image_is_refused() -> None:
    one = image()
    planned = plan(one, scan(one), "trap")
    with pytest.raises(UsageError, match="mode"):
        LoadTimeTranslator("inline", one, plan=planned)
    with pytest.raises(UsageError, match="another image"):
        LoadTimeTranslator("trap", image(sections=False), plan=planned)


def loaded_text(debian: Image, delta: int = 0, patched: bool = True) -> tuple[int, bytearray]:
    """Address and contents of the first segment as a loader leaves them."""
    segment = debian.segments[0]
    data = bytearray(segment.data)
    if delta:
        assert debian.relocations is not None
        debian.relocations.apply(segment.paddr, data, delta)
    for patch in LoadTimeTranslator("inline", debian, delta).image_patches if patched else ():
        at = patch.address - delta - segment.vaddr
        if 0 <= at < len(data):
            assert data[at : at + len(patch.old)] == patch.old
            data[at : at + len(patch.new)] = patch.new
    return segment.vaddr + delta, data


@pytest.mark.kernel
@pytest.mark.parametrize("delta", [0, 0x0960_0000])
def test_debians_pages_are_translated_as_they_were_planned(debian: Image, debian_rewritten: bytes, delta: int) -> None:
    data = debian_rewritten
    carried = manifest.read(from_bytes(data, "out"))
    assert carried is not None
    translator = LoadTimeTranslator("inline", debian, delta, plan=carried.plan)
    base, code = loaded_text(debian, delta)
    offset = debian.segments[0].file_offset
    compared = 0
    for site in carried.plan.sites:
        page = (site.address + delta) & -PAGE
        at = page - base
        if site.section != ".text" or site.new == site.old:
            continue
        whole = bytes(code[at : at + PAGE + 15])
        result = translator.translate(page, whole[:PAGE], b"", whole[PAGE:], site.address + delta)
        compared += 1
        assert len(result.code) == PAGE
        if not delta:
            assert result.code == data[offset + at : offset + at + PAGE]
    assert compared > 250
    assert translator.scanned == (1 if delta else 0), "what is as the file has it is not scanned"


@pytest.mark.kernel
def test_debians_flag_instructions_cost_no_exit_once_alternatives_are_applied(debian: Image) -> None:
    tables = linux_tables.of(debian)
    assert tables is not None
    base, code = loaded_text(debian)
    translator = LoadTimeTranslator("inline", debian)
    rows, homes = tables.alternatives, 0
    for index in range(len(rows)):
        length = int(rows.replacement_lengths[index])
        new = bytes(debian.view(int(rows.replacements[index]), length)) if length else b""
        at = int(rows.sites[index]) - base
        if new in (b"\xfa", b"\xfb", b"\x9c\x58") and 0 <= at < len(code) - 6 and rows.lengths[index] == 6:
            padding = {4: b"\x0f\x1f\x40\x00", 5: NOP5}[6 - length]
            code[at : at + 6] = new + padding
            homes += 1
    sites = set()
    for at in range(0, 0xE0_0000, PAGE):
        page = base + at
        pristine = translator._pristine
        assert pristine is not None
        known = pristine.page(page)
        if known is None or known.start >= PAGE:
            continue
        whole = bytes(code[at : at + PAGE + 15])
        result = translator.translate(page, whole[:PAGE], b"", whole[PAGE:], page + known.start)
        sites |= {fixup.site for fixup in result.fixups}
    assert homes > 1200
    assert len(sites) > homes * 0.98
