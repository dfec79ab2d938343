"""ELF notes: what a kernel says of itself."""

import struct
from pathlib import Path

import pytest

from bt.image import from_bytes, notes
from emulator.errors import BadImage
from tests.bt.image.image_files import make_elf, make_note


def test_pvh_entry_and_build_id_are_read() -> None:
    notes = make_note(b"Linux", 0x100, b"abc") + make_note(b"Xen", 18, (0x100_0850).to_bytes(8, "little"))
    notes += make_note(b"GNU", 3, bytes(range(20)))
    image = from_bytes(make_elf(notes=notes), "kernel")
    assert image.pvh_entry == 0x100_0850
    assert image.build_id == bytes(range(20)).hex()
    assert [(note.name, note.type) for note in image.notes] == [("Linux", 0x100), ("Xen", 18), ("GNU", 3)]


def test_a_pvh_entry_of_four_bytes_is_read() -> None:
    image = from_bytes(make_elf(notes=make_note(b"Xen", 18, b"\x50\x08\0\1")), "kernel")
    assert image.pvh_entry == 0x100_0850


def test_a_kernel_without_notes_has_neither() -> None:
    image = from_bytes(make_elf(notes=make_note(b"Xen", 18, b"odd")), "kernel")
    assert (image.pvh_entry, image.build_id) == (None, None)
    assert from_bytes(make_elf(), "kernel").notes == ()


def test_a_cut_note_is_refused_when_it_is_asked_for() -> None:
    image = from_bytes(make_elf(notes=make_note(b"GNU", 3, bytes(20))[:-4]), "kernel")
    with pytest.raises(BadImage, match="damaged"):
        _ = image.build_id


def test_notes_are_found_by_their_section_where_no_segment_has_them() -> None:
    contents = bytearray((Path(__file__).parents[3] / "samples" / "xen" / "hostile.elf").read_bytes())
    expected = from_bytes(bytes(contents), "kernel").notes
    start, size, count = struct.unpack_from("<Q14xHH", contents, 32)
    for at in range(start, start + size * count, size):
        if struct.unpack_from("<I", contents, at) == (4,):  # PT_NOTE
            struct.pack_into("<I", contents, at, 0)
    assert expected
    assert from_bytes(bytes(contents), "kernel").notes == expected


def test_notes_of_a_big_endian_kernel_are_read_in_its_byte_order() -> None:
    table = struct.pack(">III", 7, 4, 5) + b"retrap\0\0" + b"\0\1\0\0"
    [note] = notes.parse([memoryview(table)], "kernel", "big")
    assert (note.name, note.type, note.description) == ("retrap", 5, b"\0\1\0\0")
    with pytest.raises(BadImage, match="it is damaged"):
        notes.parse([memoryview(table)], "kernel")
