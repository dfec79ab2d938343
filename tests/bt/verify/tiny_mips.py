"""A MIPS32 guest of a few pages in KSEG0 that uses coprocessor 0 and the TLB and logs what it reads.

It has no console: what is wrong shows in the log. It is put together of words here.
"""

from __future__ import annotations

from emulator.isa.mips import registers as r
from tests.bt.image.image_files import Part, make_elf

PHYSICAL = 0x10_0000
TEXT = r.KSEG0 + PHYSICAL
VECTORS = TEXT + 0x2000
LOG = TEXT + 0x4000

_V0, _T0, _T1, _K0, _K1, _LOG = 2, 8, 9, 26, 27, 25
_BY_NAME = {place.name: number for number, place in r.BY_PLACE.items()}
_EI, _DI, _ERET, _WAIT, _SYSCALL, _BREAK, _EHB = 0x4160_6020, 0x4160_6000, 0x4200_0018, 0x4200_0020, 0xC, 0xD, 0xC0
_TLBR, _TLBWI, _TLBP = 0x4200_0001, 0x4200_0002, 0x4200_0008

Words = tuple[int, ...]


def _load(register: int, value: int) -> Words:
    return 0x3C00_0000 | register << 16 | value >> 16, 0x3400_0000 | register << 21 | register << 16 | value & 0xFFFF


def _mfc0(register: int, name: str) -> int:
    number, select = _BY_NAME[name]
    return 0x4000_0000 | register << 16 | number << 11 | select


def _mtc0(register: int, name: str) -> int:
    return _mfc0(register, name) | 0x80_0000


def _set(name: str, value: int) -> Words:
    return (*_load(_T0, value), _mtc0(_T0, name), _EHB)


def _kept(name: str, value: int) -> tuple[str, Words]:
    return name, (*_set(name, value), _mfc0(_V0, name))


STEPS: tuple[tuple[str, Words], ...] = (
    ("di", (_DI, _EHB, _mfc0(_V0, "Status"))),
    ("ei", (_EI, _EHB, _mfc0(_V0, "Status"), _DI, _EHB)),
    ("di with a result", (_EI, _EHB, _DI | _V0 << 16, 0x3042_0001, _EHB)),
    ("status", (*_set("Status", 0x1000_0400), _mfc0(_V0, "Status"))),
    ("exl", (*_set("Status", 0x1000_0002), _mfc0(_V0, "Status"), *_set("Status", 0x1000_0000))),
    _kept("EPC", 0x8123_4560),
    _kept("ErrorEPC", 0x8765_4320),
    _kept("EntryHi", 0x0040_2007),
    _kept("EntryLo0", 0x0000_4047),
    _kept("EntryLo1", 0x0000_8087),
    _kept("Index", 5),
    _kept("Wired", 3),
    _kept("PageMask", 0x6000),
    _kept("Compare", 0x7FFF_0000),
    _kept("HWREna", 0x2000_000F),
    _kept("Context", 0x8180_0000),
    ("registers", (*_load(_T0, 0x1111), *_load(_T1, 0x2222), _mfc0(_V0, "Status"), 0x0109_1026)),
    (
        "tlbwi and tlbr",
        (*_set("PageMask", 0), _TLBWI, _EHB, *_set("EntryLo0", 0), _TLBR, _EHB, _mfc0(_V0, "EntryLo0")),
    ),
    ("tlbp", (*_set("Index", 9), _TLBP, _EHB, _mfc0(_V0, "Index"))),
    ("syscall", (*_load(_V0, 77), _SYSCALL, 0x0360_1025)),
    ("break", (_BREAK, 0x0360_1025)),
    ("address", (*_load(_T0, 0x8000_0001), 0x8D08_0000, _mfc0(_V0, "BadVAddr"))),
    *((name, (_mfc0(_V0, name),)) for name in ("PRId", "Config", "Config1", "Config2", "Config3", "IntCtl", "EBase")),
    *((f"rdhwr {number}", (0x7C02_003B | number << 11,)) for number in (0, 1, 3)),
)
"""Name of what is done, and the words that leave one in V0."""


def tiny_mips() -> bytes:
    """The ELF. It ends by WAIT with interrupts disabled; an exception leaves Cause in K1 and is stepped over."""
    words = [*_load(_T0, VECTORS), _mtc0(_T0, "EBase"), _EHB, *_set("Status", 0x1000_0000), *_load(_LOG, LOG)]
    for number, (_name, code) in enumerate(STEPS):
        words += [*code, 0xAC00_0000 | _LOG << 21 | _V0 << 16 | 4 * number, 0]
    words += [_DI, _EHB, _WAIT, 0x1000_FFFF, 0]
    handler = [_mfc0(_K0, "EPC"), 0x275A_0004, _mtc0(_K0, "EPC"), _mfc0(_K1, "Cause"), _ERET, 0]
    text = _packed(words)
    assert len(text) < VECTORS - TEXT
    padded = text.ljust(VECTORS - TEXT, b"\0") + bytes(0x180) + _packed(handler)
    return make_elf(
        (
            Part(".text", padded, TEXT, PHYSICAL, 5),
            Part(".data", bytes(0x1000), LOG, LOG - r.KSEG0, 6),
        ),
        TEXT,
        machine=8,
        bits=32,
    )


def step(address: int) -> str:
    """Which step wrote a word of the log, by its address in KSEG0."""
    return STEPS[(address - LOG) // 4][0]


def _packed(words: list[int]) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in words)
