"""Patch tables of Linux on ARMv7, found by symbols and by structure, and where a bare Image is linked."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from bt.image import from_bytes
from bt.image.arm_tables import ArmTables
from bt.image.image import Image
from bt.image.symbols import Symbols
from bt.scan import scan
from bt.tactics.registry import tactics_of
from emulator.errors import BadImage

OFFSET = 0x20_8000
BASE = 0xC000_0000 + OFFSET
TEXT, TABLES, KEYS, SIZE = BASE + 0x1000, BASE + 0x8000, BASE + 0x2_0000, 0x1_8000
NOP, LDR, ADD, PUSH = 0xE320_F000, 0xE591_0000, 0xE281_1481, 0xE92D_4010
COUNT = 12


def kernel(relative: bool = True) -> tuple[bytes, dict[str, list[int]], dict[str, int]]:
    """An Image with a table of each kind; what they hold, and the symbols around them."""
    words = np.zeros(SIZE // 4, np.uint32)
    words[:3] = [0xEB00_1000, 0xE10F_9000, 0xE229_901A]
    words[3:6] = BASE
    names = b"Linux version 6.1.0-arm (somebody) "
    words[0x40 : 0x40 + len(names) // 4 + 1] = np.frombuffer(names.ljust(len(names) // 4 * 4 + 4, b"\0"), "<u4")
    words[(TEXT - BASE) // 4 : (TEXT - BASE) // 4 + 0x800] = 0xE1A0_1001
    found: dict[str, list[int]] = {"faulting": [], "landings": [], "sites": [], "targets": [], "single": [], "own": []}
    symbols = {"_text": BASE, "_stext": TEXT, "_etext": TEXT + 0x2000}
    at = TABLES

    def put(value: int) -> None:
        nonlocal at
        words[(at - BASE) // 4] = value & 0xFFFF_FFFF
        at += 4

    def stand(address: int, word: int) -> int:
        words[(address - BASE) // 4] = word
        return address

    symbols["__start___ex_table"] = at
    for n in range(COUNT):
        found["faulting"].append(stand(TEXT + 16 * n, LDR))
        found["landings"].append(TEXT + 0x400 + 16 * n)
        put(found["faulting"][-1])
        put(found["landings"][-1])
    symbols["__stop___ex_table"] = at
    at += 0x40
    symbols["__start___jump_table"] = at
    for n in range(COUNT):
        found["sites"].append(stand(TEXT + 0x800 + 16 * n, NOP))
        found["targets"].append(TEXT + 0xC00 + 16 * n)
        put(found["sites"][-1])
        put(found["targets"][-1])
        put(KEYS + 8 * n | n & 1)
    symbols["__stop___jump_table"] = at
    at += 0x40
    symbols["__smpalt_begin"] = at
    for n in range(COUNT):
        found["single"].append(stand(TEXT + 0x1000 + 16 * n, 0xF57F_F05B))
        put(found["single"][-1] - (at if relative else 0))
        put(NOP)
    symbols["__smpalt_end"] = at
    at += 0x40
    symbols["__pv_table_begin"] = at
    for n in range(COUNT):
        found["own"].append(stand(TEXT + 0x1800 + 16 * n, ADD))
        put(found["own"][-1] - (at if relative else 0))
    symbols["__pv_table_end"] = at
    return words.tobytes(), found, symbols


def image_of(data: bytes, symbols: dict[str, int]) -> Image:
    """The Image, as if its kallsyms held these."""
    image = from_bytes(data, "Image")
    order = sorted(symbols, key=lambda name: symbols[name])
    addresses = np.array([symbols[name] for name in order], np.uint64)
    made = Symbols(addresses, "T" * len(order), lambda: order, [(BASE, BASE + SIZE)], "kallsyms")
    assert image.once("symbols", lambda: made) is made
    return image


def check(image: Image, wanted: dict[str, list[int]]) -> None:
    tables = image.linux
    assert isinstance(tables, ArmTables)
    assert tables.version == "6.1.0-arm"
    assert tables.faulting.tolist() == wanted["faulting"]
    assert tables.landings.tolist() == wanted["landings"]
    assert tables.jump_sites.tolist() == wanted["sites"]
    assert tables.jump_targets.tolist() == wanted["targets"]
    assert tables.single_sites.tolist() == wanted["single"]
    assert tables.physical_sites.tolist() == wanted["own"]
    assert set(tables.single_code.tolist()) == {NOP}


def test_tables_are_found_by_their_structure_in_a_stripped_kernel() -> None:
    data, wanted, symbols = kernel()
    check(image_of(data, {name: at for name, at in symbols.items() if "text" in name}), wanted)


@pytest.mark.parametrize("relative", [True, False])
def test_tables_are_found_by_the_kernels_own_symbols(relative: bool) -> None:
    data, wanted, symbols = kernel(relative)
    check(image_of(data, symbols), wanted)


def test_an_entry_outside_the_code_is_left_out() -> None:
    data, wanted, symbols = kernel()
    at = symbols["__start___ex_table"] - BASE
    damaged = data[:at] + struct.pack("<I", 0xFFFF_FFF0) + data[at + 4 :]
    check(image_of(damaged, symbols), wanted | {name: wanted[name][1:] for name in ("faulting", "landings")})


def test_symbols_that_lie_lead_to_the_structure() -> None:
    data, wanted, symbols = kernel()
    check(image_of(data, symbols | {"__stop___ex_table": BASE + 0x7FFF_0000}), wanted)


def test_the_sweep_marks_what_the_kernel_patches_and_where_it_may_go_on() -> None:
    data, wanted, symbols = kernel()
    image = image_of(data, symbols)
    (stretch, *_) = (one for one in tactics_of("armv7").sweep(image) if one.start <= TEXT < one.end)
    page = stretch.page(TEXT - stretch.start)
    assert all(page.taken >> address - TEXT & 1 for address in wanted["faulting"] + wanted["sites"])
    assert all(page.targets >> address - TEXT & 1 for address in wanted["landings"] + wanted["targets"])
    assert not page.taken >> 4 & 1
    assert len(scan(image)) == 1  # what head.S begins with


@pytest.mark.parametrize("offset", [0x8000, 0x20_8000, 0x128_8000])
def test_an_image_is_linked_where_pointers_lead_to_the_beginnings_of_functions(offset: int) -> None:
    words = np.full(0x4000, 0xE1A0_1001, np.uint32)
    words[:3] = [0xEB00_1000, 0xE10F_9000, 0xE229_901A]
    base = 0xC000_0000 + offset
    functions = np.cumsum(np.random.default_rng(7).integers(2, 9, 300)) + 0x100
    words[functions] = PUSH
    words[0x3000 : 0x3000 + 300] = base + 4 * functions
    words[0x3800:0x3810] = 0xC000_8000  # what a kernel elsewhere would be named by
    image = from_bytes(words.tobytes(), "Image")
    assert (image.segments[0].vaddr, image.header.text_offset) == (base, offset)


def test_an_image_that_does_not_tell_where_it_is_linked_is_refused_with_the_way_out() -> None:
    words = [0xEB00_1000, 0xE10F_9000, 0xE229_901A]
    with pytest.raises(BadImage, match=r"does not show .* give the zImage or the vmlinux"):
        from_bytes(struct.pack("<3I", *words).ljust(0x8000, b"\0"), "Image")
