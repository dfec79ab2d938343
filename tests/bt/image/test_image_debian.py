"""Debian's stock kernel: what is read from it is true of its bytes, and moves as a whole."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment
from iced_x86 import Code, Decoder, FlowControl, Instruction, Mnemonic

from bt.image import Image, from_bytes, linux_tables, load, move, to_boot

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

DELTA = 0x0960_0000


def _decode(image: Image, address: int, size: int = 15) -> Iterator[Instruction]:
    return iter(Decoder(64, bytes(image.view(address, size)), ip=address))


def _address(image: Image, name: str) -> int:
    address = image.symbols.address_of(name)
    assert address is not None, name
    return address


def test_the_headers_are_those_pyelftools_reads(debian: Image, tmp_path: Path) -> None:
    copy = tmp_path / "vmlinux"
    copy.write_bytes(debian.elf)
    with copy.open("rb") as file:
        oracle = ELFFile(file)
        assert [(s.vaddr, s.paddr, s.memory_size, len(s.data), s.file_offset) for s in debian.segments] == [
            (s["p_vaddr"], s["p_paddr"], s["p_memsz"], s["p_filesz"], s["p_offset"])
            for s in oracle.iter_segments("PT_LOAD")
        ]
        assert [(s.name, s.vaddr, s.size) for s in debian.sections] == [
            (s.name, s["sh_addr"], s["sh_size"]) for s in oracle.iter_sections()
        ]
        (build_id,) = [
            note["n_desc"]
            for segment in oracle.iter_segments("PT_NOTE")
            if isinstance(segment, NoteSegment)
            for note in segment.iter_notes()
            if (note["n_name"], note["n_type"]) == ("GNU", "NT_GNU_BUILD_ID")
        ]
    assert debian.build_id == build_id
    assert (debian.container, debian.compression, debian.entry) == ("bzimage", "xz", 0x100_0000)
    assert debian.entry_virtual == _address(debian, "startup_64")


def test_a_cached_load_takes_a_fraction_of_a_second(debian: Image, debian_kernel: Path) -> None:
    # Time of this process, and three tries, because other work on the machine is no fault of the loader's.
    times = []
    for _ in range(3):
        start = time.process_time()
        assert load(debian_kernel).sha256 == debian.sha256
        times.append(time.process_time() - start)
    assert min(times) < 0.5


def test_kallsyms_names_are_true_of_the_bytes_they_point_at(debian: Image) -> None:
    assert debian.symbols.source == "kallsyms"
    assert len(debian.symbols) > 50_000
    assert _address(debian, "_text") == debian.segments[0].vaddr
    banner = bytes(debian.view(_address(debian, "linux_banner"), 14))
    assert banner == b"Linux version "
    mnemonics = [instruction.mnemonic for instruction in _decode(debian, _address(debian, "native_save_fl"), 3)]
    assert mnemonics[:2] == [Mnemonic.PUSHFQ, Mnemonic.POP]
    # startup_64 begins with position-independent code that calls __startup_64.
    calls = [
        instruction.near_branch_target
        for instruction in _decode(debian, _address(debian, "startup_64"), 200)
        if instruction.flow_control == FlowControl.CALL
    ]
    assert _address(debian, "__startup_64") in calls


def test_pv_ops_holds_addresses_of_functions(debian: Image) -> None:
    start = _address(debian, "pv_ops")
    end = debian.symbols.end_of(start)
    assert end is not None
    slots = struct.unpack(f"<{(end - start) // 8}Q", debian.view(start, end - start))
    names = [debian.symbols.name_at(slot) for slot in slots if slot]
    assert "native_save_fl" in names
    assert "native_write_cr3" in names
    assert all("+" not in name for name in names)


def test_kallsyms_of_an_elf_without_sections_are_the_same(debian: Image) -> None:
    data = bytearray(debian.elf)
    struct.pack_into("<Q", data, 40, 0)  # e_shoff
    struct.pack_into("<HHH", data, 58, 0, 0, 0)
    bare = from_bytes(data, "bare")
    assert list(bare.symbols) == list(debian.symbols)
    assert bare.linux is not None
    assert debian.linux is not None
    assert bare.linux.counts() == debian.linux.counts()


def test_kallsyms_are_read_in_half_a_second(debian_kernel: Path) -> None:
    image = load(debian_kernel)
    start = time.process_time()
    assert image.symbols.address_of("_text")
    assert time.process_time() - start < 1.0


def _all_bytes(image: Image, addresses: np.ndarray, allowed: bytes) -> bool:
    return all(image.view(address, 1)[0] in allowed for address in addresses.tolist())


def test_every_patch_site_holds_what_its_table_says(debian: Image) -> None:
    linux = linux_tables.of(debian)
    assert linux is not None
    assert linux.version.startswith("6.")
    assert _all_bytes(debian, linux.smp_locks, b"\xf0\x3e")
    assert _all_bytes(debian, linux.returns, b"\xe9\xeb")
    assert _all_bytes(debian, linux.mcount, b"\xe8")
    assert _all_bytes(debian, linux.static_calls.sites, b"\xe8\xe9\x2e\x0f")
    assert _all_bytes(debian, linux.jump_labels.sites, b"\xe9\xeb\x0f\x66")
    thunks = {name for name in (symbol.name for symbol in debian.symbols) if name.startswith("__x86_indirect_")}
    for address in linux.retpolines.tolist():
        target = next(_decode(debian, address)).near_branch_target
        name = debian.symbols.name_at(target)
        assert name in thunks or name.startswith(("__x86_indirect_", "srso_", "retbleed_", "its_")), name
    (fentry,) = {next(_decode(debian, address)).near_branch_target for address in linux.mcount.tolist()}
    assert debian.symbols.name_at(fentry) == "__fentry__"


def test_paravirt_sites_are_indirect_calls_through_their_slot(debian: Image) -> None:
    linux = linux_tables.of(debian)
    assert linux is not None
    pv_ops = _address(debian, "pv_ops")
    for site, kind, length in zip(
        linux.paravirt.sites.tolist(),
        linux.paravirt.types.tolist(),
        linux.paravirt.lengths.tolist(),
        strict=True,
    ):
        call = next(_decode(debian, site))
        assert (call.code, call.len) == (Code.CALL_RM64, length)
        assert call.ip_rel_memory_address == pv_ops + 8 * kind


def test_alternatives_are_whole_instructions_on_both_sides(debian: Image) -> None:
    linux = linux_tables.of(debian)
    assert linux is not None
    alternatives = linux.alternatives
    for addresses, lengths in (
        (alternatives.sites, alternatives.lengths),
        (alternatives.replacements, alternatives.replacement_lengths),
    ):
        for address, length in zip(addresses.tolist(), lengths.tolist(), strict=True):
            decoded = list(_decode(debian, address, length)) if length else []
            assert sum(instruction.len for instruction in decoded) == length
            assert all(instruction.code != Code.INVALID for instruction in decoded)
    assert int(alternatives.features.max()) < 32 * 32
    assert alternatives.inverted.any()


def test_every_table_of_the_kernel_is_found(debian: Image) -> None:
    assert debian.linux is not None
    counts = debian.linux.counts()
    expected = {
        "alternatives": 2_000,
        "paravirt": 1_000,
        "smp_locks": 2_000,
        "jump_labels": 2_000,
        "retpolines": 2_000,
        "returns": 20_000,
        "exceptions": 200,
        "static_calls": 1_000,
        "mcount": 20_000,
    }
    assert {name: counts[name] >= least for name, least in expected.items()} == dict.fromkeys(expected, True)
    # Where a table has a section of its own, no entry is lost.
    for name, section_name, size in (
        ("alternatives", ".altinstructions", 12),
        ("paravirt", ".parainstructions", 16),
        ("retpolines", ".retpoline_sites", 4),
        ("returns", ".return_sites", 4),
        ("exceptions", "__ex_table", 12),
    ):
        section = debian.section(section_name)
        assert section is not None
        assert counts[name] * size == section.size


def test_the_kernel_moves_as_a_whole(debian: Image) -> None:
    start = time.process_time()
    boot = to_boot(debian, delta=DELTA, physical_delta=0x400_0000)
    assert time.process_time() - start < 2.0
    assert boot.entry == debian.entry_physical + 0x400_0000
    moved = {segment.physical - 0x400_0000: segment.data for segment in boot.segments}

    def word(address: int) -> int:
        segment = debian.segment_at(address)
        assert segment is not None
        value: int = struct.unpack_from("<Q", moved[segment.paddr], address - segment.vaddr)[0]
        return value

    # Pointers in data, in a per-CPU variable and in the page tables of the boot; a distance stays.
    old = struct.unpack("<Q", debian.view(_address(debian, "pv_ops"), 8))[0]
    assert word(_address(debian, "pv_ops")) == old + DELTA
    task = _address(debian, "current_task")
    assert word(task) == _address(debian, "init_task") + DELTA
    top = _address(debian, "init_top_pgt") + 511 * 8
    assert word(top) & ~0xFFF == _address(debian, "level3_kernel_pgt") - 0xFFFF_FFFF_8000_0000 + DELTA
    assert debian.relocations is not None
    assert len(debian.relocations) > 100_000


def test_relative_references_to_percpu_symbols_shrink_by_the_offset(debian: Image) -> None:
    relocations = debian.relocations
    assert relocations is not None
    boot = to_boot(debian, delta=DELTA)
    text, moved = debian.segments[0], boot.segments[0].data
    first = next(place for place in relocations.inverse32.tolist() if place < text.vaddr + len(text.data))
    before = struct.unpack_from("<i", text.data, first - text.vaddr)[0]
    assert struct.unpack_from("<i", moved, first - text.vaddr)[0] == before - DELTA
    # The displacement leads to the per-CPU segment, which is linked at 0, from an instruction that moved.
    assert 0 <= (before + first + 4) % (1 << 64) < 1 << 24


def test_symbols_and_tables_of_the_moved_kernel_are_moved(debian: Image) -> None:
    moved = move(debian, delta=DELTA)
    old, new = list(debian.symbols), list(moved.symbols)
    kernel = debian.segments[0].vaddr
    assert {name: address for address, _, name in new} == {
        name: address + DELTA if address >= kernel else address for address, _, name in old
    }
    tables, shifted = linux_tables.of(debian), linux_tables.of(moved)
    assert tables is not None
    assert shifted is not None
    assert shifted.counts() == tables.counts()
    for before, after in (
        (tables.paravirt.sites, shifted.paravirt.sites),
        (tables.mcount, shifted.mcount),
        (tables.alternatives.replacements, shifted.alternatives.replacements),
        (tables.jump_labels.keys, shifted.jump_labels.keys),
    ):
        assert np.array_equal(before + np.uint64(DELTA), after)
    assert shifted.version == tables.version
