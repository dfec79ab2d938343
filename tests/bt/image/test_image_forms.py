"""ELF of either class and byte order, modules, raw memory: read as other tools read it, or refused."""

from __future__ import annotations

import io
import struct
from dataclasses import replace

import pytest
from elftools.elf.elffile import ELFFile

from bt.image import Image, from_bytes, kallsyms, to_boot
from bt.image.relocatable import START, targets
from emulator.errors import BadImage
from tests.bt.image.image_files import Part, make_elf, make_kallsyms, make_symtab

LOW = 0xC010_0000
TEXT = Part(".text", b"\x90" * 60 + b"\xc3" * 4, LOW, 0x10_0000, 5)
DATA = Part(".data", bytes(range(256)), LOW + 0x20_0000, 0x30_0000, 6, 0x1000)
FORMS = (("i386", 3, 32, "<"), ("armv7", 40, 32, "<"), ("mips32", 8, 32, "<"), ("mips32", 8, 32, ">"))


def kernel(machine: int = 3, order: str = "<", parts: tuple[Part, ...] = (TEXT, DATA), entry: int = LOW) -> bytes:
    return make_elf(parts, entry, machine=machine, bits=32, order=order)


@pytest.mark.parametrize(("name", "machine", "bits", "order"), FORMS)
def test_a_32_bit_kernel_of_either_byte_order_is_read_as_pyelftools_reads_it(
    name: str, machine: int, bits: int, order: str
) -> None:
    data = kernel(machine, order)
    image, oracle = from_bytes(data, "kernel"), ELFFile(io.BytesIO(data))
    assert (image.isa.name, image.isa.bits, image.container) == (name, bits, "elf32")
    assert image.byte_order == {"<": "little", ">": "big"}[order]
    assert [(s.vaddr, s.paddr, s.memory_size, s.flags, bytes(s.data), s.file_offset) for s in image.segments] == [
        (s["p_vaddr"], s["p_paddr"], s["p_memsz"], s["p_flags"], s.data(), s["p_offset"])
        for s in oracle.iter_segments("PT_LOAD")
    ]
    assert [(s.name, s.vaddr, s.size, s.flags) for s in image.sections] == [
        (s.name, s["sh_addr"], s["sh_size"], s["sh_flags"]) for s in oracle.iter_sections()
    ]
    assert (image.entry_virtual, image.entry_physical) == (LOW, 0x10_0000)
    assert len(to_boot(image).segments) == 2


@pytest.mark.parametrize("order", ["<", ">"])
def test_symbols_of_a_32_bit_kernel_are_read(order: str) -> None:
    table, names = make_symtab([(LOW + 4, "second", 2, 1), (LOW, "first", 0x12, 1)], 4, bits=32, order=order)
    image = from_bytes(kernel(8, order, (TEXT, DATA, table, names)), "kernel")
    assert [(s.address, s.type, s.name) for s in image.symbols] == [(LOW, "T", "first"), (LOW + 4, "t", "second")]
    assert image.symbols.name_at(LOW + 7) == "second+0x3"


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", ["before", "behind", "ordered", "whole"])
def test_kallsyms_of_either_width_and_byte_order_is_found(bits: int, order: str, layout: str) -> None:
    base = 0x8010_0000 if bits == 32 else 0xFFFF_8000_0800_0000
    symbols = [(base + 12 * index, "tTdr"[index % 4], f"sys_name_{index}") for index in range(700)]
    data = make_kallsyms(
        symbols,
        base=base,
        bits=bits,
        order=order,
        absolute_percpu=False,
        offsets_last=layout == "behind",
        order_table=layout == "ordered",
        whole_addresses=layout == "whole",
    )
    found = kallsyms.find([memoryview(bytes(64) + data + bytes(64))], bits, "big" if order == ">" else "little")
    assert found is not None
    assert [(int(a), t, n) for a, t, n in zip(found.addresses, found.types, found.names, strict=True)] == symbols


def test_an_address_outside_32_bits_is_refused() -> None:
    with pytest.raises(BadImage, match="runs over the end"):
        from_bytes(kernel(parts=(replace(TEXT, vaddr=0xFFFF_FFF0, paddr=0),), entry=1), "kernel")


def test_position_independent_kernels_are_read_at_their_own_addresses() -> None:
    image = from_bytes(make_elf((TEXT, DATA), LOW, machine=40, bits=32, kind=3), "kernel")
    assert image.entry_virtual == LOW


# -- modules ------------------------------------------------------------------------------------

INIT = Part(".init.text", b"\xfa\xc3" + b"\x90" * 14, 0, 0, 5)
CODE = Part(".text", b"\x90\xe8\0\0\0\0\xfb\xc3" + b"\x90" * 8, 0, 0, 5)
BSS = Part(".bss", b"", 0, 0, 6, type=8)
RELA = struct.pack("<QQq", 2, 3 << 32 | 4, -4)
"""At offset 2 of .text, R_X86_64_PLT32 against symbol 3, addend -4."""


def module() -> bytes:
    table, names = make_symtab([(0, "init_module", 0x12, 2), (6, "inner", 2, 1), (8, "late", 2, 1)], 6)
    return make_elf((CODE, INIT, BSS, Part(".rela.text", RELA, type=4, link=5, info=1), table, names), 0, kind=1)


def test_a_modules_sections_get_addresses_one_behind_the_other() -> None:
    image = from_bytes(module(), "module.ko")
    assert image.relocatable
    assert [(s.name, s.vaddr) for s in image.sections if s.flags & 4] == [(".text", START), (".init.text", START + 16)]
    assert [tuple(r) for r in image.text_ranges] == [(START, START + 16), (START + 16, START + 32)]
    assert {s.name: s.address for s in image.symbols} == {
        "inner": START + 6, "late": START + 8, "init_module": START + 16,
    }  # fmt: skip
    assert bytes(image.view(START + 16, 1)) == b"\xfa"


def test_a_modules_relocations_lead_to_what_they_name() -> None:
    (found,) = targets(from_bytes(module(), "module.ko"))
    assert START + 8 in found.tolist()


def test_a_module_is_not_booted() -> None:
    with pytest.raises(BadImage, match="is a kernel module and cannot be booted"):
        to_boot(from_bytes(module(), "module.ko"))


def test_a_module_with_an_impossible_alignment_is_refused() -> None:
    data = bytearray(module())
    (at,) = struct.unpack_from("<Q", data, 40)
    struct.pack_into("<Q", data, at + 64 + 48, 3)
    with pytest.raises(BadImage, match="aligned to 3"):
        from_bytes(bytes(data), "module.ko")


def test_a_section_of_ten_gigabytes_is_refused() -> None:
    data = bytearray(module())
    (at,) = struct.unpack_from("<Q", data, 40)
    struct.pack_into("<Q", data, at + 3 * 64 + 32, 10 << 30)  # .bss, which has no bytes in the file
    with pytest.raises(BadImage, match="more than 0x40000000 bytes"):
        from_bytes(bytes(data), "module.ko")


def test_overlapping_executable_sections_are_refused() -> None:
    inner = replace(TEXT, name=".inner", vaddr=LOW + 16, data=TEXT.data[:16], in_segment=False)
    image = from_bytes(kernel(parts=(TEXT, inner, DATA)), "kernel")
    with pytest.raises(BadImage, match="two executable sections overlap at 0xc0100010"):
        _ = image.text_ranges


@pytest.mark.kernel
def test_an_image_without_debug_data_has_no_source_lines(debian: Image) -> None:
    assert debian.source_line(debian.entry_virtual) == ""
