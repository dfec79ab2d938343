"""Whatever the bytes of a file are: it gives an `Image` or a `BadImage`, and so does everything read from it later."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt.image import from_bytes, to_boot
from emulator.errors import BadImage, UsageError
from tests.bt.image.image_files import (
    BASE,
    COMPRESS,
    DATA,
    TEXT,
    Part,
    make_bzimage,
    make_elf,
    make_kallsyms,
    make_note,
    make_relocations,
    make_symtab,
)

pytestmark = pytest.mark.usefixtures("module_cache")

NAMES = [(BASE + index, "t", f"function_{index}") for index in range(300)]
RODATA = Part(".rodata", make_kallsyms([*NAMES, (BASE + 400, "r", "linux_banner")]), BASE + 0x40_0000, 0x140_0000)
LOCKS = Part(".smp_locks", (-0x50_0000).to_bytes(4, "little", signed=True) * 2, BASE + 0x50_0000, 0x150_0000)
NOTES = make_note(b"GNU", 3, bytes(20))
STRIPPED = make_elf((TEXT, DATA, RODATA, LOCKS), notes=NOTES)
WITH_SYMBOLS = make_elf(
    (TEXT, DATA, *make_symtab([(BASE, "_text", 0x12, 1), (BASE + 8, "linux_banner", 0x12, 1)], 4)),
    notes=NOTES,
)
TABLE = make_relocations([0xFFFF_FFFF_8120_0000], [0xFFFF_FFFF_8120_0010], [0xFFFF_FFFF_8120_0020])
FILES = {
    "stripped": STRIPPED,
    "symtab": WITH_SYMBOLS,
    "appended": WITH_SYMBOLS + TABLE,
    "plain bzImage": make_bzimage(WITH_SYMBOLS + TABLE),
    **{
        f"{name} bzImage": make_bzimage(pack(WITH_SYMBOLS + TABLE)) for name, pack in COMPRESS.items() if name != "none"
    },
}


def _refusals(data: bytes) -> list[str]:
    """What is said of the file while all of it is read; any other exception than a refusal gets out."""
    try:
        image = from_bytes(data, "kernel")
    except BadImage as error:
        return [str(error)]
    readers = (
        lambda: list(image.symbols),
        lambda: image.symbols.name_at(image.entry_virtual),
        lambda: image.linux and image.linux.counts(),
        lambda: image.relocations,
        lambda: (image.pvh_entry, image.build_id),
        lambda: [image.view(start, end - start) for start, end in image.text_ranges],
        lambda: to_boot(image),
        lambda: to_boot(image, delta=0x20_0000, physical_delta=0x40_0000),
    )
    said = []
    for read in readers:
        try:
            read()
        except (BadImage, UsageError) as error:
            said.append(str(error))
    return said


def _assert_sentences(said: list[str]) -> None:
    for sentence in said:
        assert "kernel" in sentence
        assert len(sentence) < 400
        assert "\n" not in sentence


@pytest.mark.parametrize("name", FILES)
def test_all_of_the_unharmed_file_is_read(name: str) -> None:
    said = _refusals(FILES[name])
    if name in ("stripped", "symtab"):
        assert len(said) == 1
        assert "has no relocation table" in said[0]
    else:
        assert said == []


@pytest.mark.parametrize("name", FILES)
@given(
    edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6),
    near_start=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_changed_bytes_give_an_image_or_a_refusal(name: str, edits: list[tuple[int, int]], near_start: bool) -> None:
    data = bytearray(FILES[name])
    # Headers are where a byte matters most: half of the examples change nothing else.
    limit = min(len(data), 0x300) if near_start else len(data)
    for position, value in edits:
        data[position % limit] = value
    _assert_sentences(_refusals(bytes(data)))


@pytest.mark.parametrize("name", FILES)
@given(size=st.integers(0, 1 << 20))
@settings(max_examples=40, deadline=None)
def test_a_cut_file_gives_an_image_or_a_refusal(name: str, size: int) -> None:
    data = FILES[name]
    _assert_sentences(_refusals(data[: size % len(data)]))


@given(
    word=st.integers(0, (len(STRIPPED) - 8) // 8),
    value=st.sampled_from([0, 1, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 62, 1 << 63, (1 << 64) - 1, BASE, BASE + 0x20_0000]),
    headers=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_extreme_words_give_an_image_or_a_refusal(word: int, value: int, headers: bool) -> None:
    data = bytearray(STRIPPED)
    at = word * 8 % 0x200 if headers else word * 8
    data[at : at + 8] = value.to_bytes(8, "little")
    _assert_sentences(_refusals(bytes(data)))
