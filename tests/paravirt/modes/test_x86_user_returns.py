"""The code for IRETQ and INVLPG makes of a guest's entry what the hypervisor does, or leaves all as it was."""

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bt.bench.room import CODE, Room
from emulator.engine.engines import open_engine
from emulator.engine.exit import Exit
from emulator.isa.paging import READ, WRITE
from emulator.isa.x86 import registers as r
from emulator.isa.x86 import walk as w
from emulator.isa.x86.paging import LONG_MODE
from paravirt import abi
from paravirt.modes.x86 import user_faults, user_returns
from paravirt.modes.x86.user_returns import Shown

ROOT, SHARED, TABLES, SLOW, SHADOW, SOURCES, KINDS, BLOCKS, STACK = (
    *(0x1000, 0x30_0000, 0x31_0000, 0x10_2000, 0x32_0000, 0x33_0000, 0x34_0000, 0x34_8000),
    0x35_0F00,
)
SIZE, USER_CODE, RIP, RSP = 0x40_0000, 0x33, 0x40_1234, 0x7FFF_5678
SHADOW_AT, SHADOW_SIZE = 1 << 36, 0x8000
SHOWN = Shown(0, SIZE, SHADOW, SHADOW_AT, SHADOW_SIZE, SOURCES, BLOCKS, KINDS)
UD2 = b"\x0f\x0b"
USED = w.PRESENT | w.USER | w.ACCESSED
OWN = tuple(number for number in range(16) if number != r.RSP)


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    room = Room(open_engine("x86-64"))
    words = room.memory.cast("Q")
    upper = TABLES - 0x3000
    for level, table in enumerate((ROOT, upper, upper + 0x1000, upper + 0x2000)):
        at = abi.SHARED_PAGE >> 39 - 9 * level & 511
        words[(table >> 3) + at] = (upper + level * 0x1000 if level < 3 else SHARED) | 0x67
    room.memory[SLOW : SLOW + 3] = b"\x90" + UD2
    room.engine.code_changed(SLOW, 3)
    yield room
    room.close()


@dataclass
class Scene:
    """Tables on the way to an address, the guest's and the shadow's, and what of them is unusual."""

    room: Room
    chance: random.Random
    address: int
    usual: bool = True
    absent: bool = False

    def unusual(self, likely: float = 0.03) -> bool:
        """Now and then."""
        if self.chance.random() >= likely:
            return False
        self.usual = False
        return True

    def lay(self) -> None:
        """Fill everything anew."""
        memory, words = self.room.memory, self.room.memory.cast("Q")
        memory[TABLES : TABLES + 0x4000] = memory[SHADOW : SHADOW + 0x4000] = bytes(0x4000)
        for number in range(SIZE >> 12):
            memory[KINDS + number] = self.chance.random() < 0.2
        for number in range(4):
            wrong = self.unusual(0.01)
            struct.pack_into("<I", memory, SOURCES + 4 * number, (TABLES >> 12) + number + wrong)
        for number in range(3):
            at = self.address >> 39 - 9 * number & 511
            guest = TABLES + 4096 * (number + 1) | w.PRESENT | w.USER | w.ACCESSED | w.WRITABLE
            if self.unusual(0.02):
                guest ^= self.chance.choice((w.PRESENT, w.USER, w.LARGE, SIZE))
            words[(TABLES >> 3) + 512 * number + at] = guest
            shadow = SHADOW_AT + 4096 * (number + 1) | 0x27
            if self.unusual(0.02):
                shadow ^= self.chance.choice((w.LARGE, 1 << 30))
            elif self.usual and self.unusual(0.02):
                shadow, self.absent = 0, True
            words[(SHADOW >> 3) + 512 * number + at] = shadow

    def page(self, number: int) -> int:
        """Place of a page's entry, the address's or one beside it, in words of a table."""
        return ((self.address >> 12) + number) & 511

    def entry(self) -> int:
        """One of the guest's entries."""
        guest = self.chance.randrange(SIZE >> 12) << 12 | USED
        for bit, likely in ((w.WRITABLE, 0.6), (w.DIRTY, 0.7), (w.NO_EXECUTE, 0.5), (1 << 58, 0.1)):
            guest |= bit if self.chance.random() < likely else 0
        return guest


def expected(room: Room, guest: int) -> int:
    """What the hypervisor makes of a guest's entry."""
    frame = guest & w.FRAME_MASK
    plain = guest & w.WRITABLE and guest & w.DIRTY and not room.memory[KINDS + (frame >> 12)]
    bits = LONG_MODE.pages[READ | WRITE if plain else READ] & ~w.NO_EXECUTE
    return frame | bits | guest & w.NO_EXECUTE


def go(room: Room, code: bytes, registers: list[int], shared: dict[int, int]) -> tuple[int, int]:
    """Run from the code on; vector and place of its end."""
    words = room.memory[SHARED : SHARED + 4096].cast("Q")
    for offset in range(abi.RETURN_THREAD, 0x800, 8):
        words[offset >> 3] = 0
    shared = {abi.CONTROL_REGISTERS + 0x18: TABLES | 0x18, user_returns.ROOT_OF: TABLES | 0x18, **shared}
    for offset, value in shared.items():
        words[offset >> 3] = value
    room.start(code)
    gpr = room.engine.registers.gpr
    for number in range(16):
        gpr[number] = registers[number]
    room.engine.registers.rflags |= r.FLAG_CF | r.FLAG_OF
    return resume(room)


def resume(room: Room) -> tuple[int, int]:
    """Run to the next end."""
    ends: list[tuple[int, int]] = []

    def handler(exit_: Exit) -> None:
        ends.append((exit_.vector, room.engine.registers.rip))
        room.engine.stop()

    room.run(handler)
    return ends[0]


FRAME = (RIP, USER_CODE, r.FLAG_CF | r.FLAG_DF | r.FLAG_IF | r.FLAG_RF | 2, RSP, USER_CODE - 8)
ODD = ((0, 1 << 47), (1, 8), (2, r.FLAG_IF), (2, r.FLAG_TF), (2, r.FLAG_NT), (2, 1 << 40), (4, 8))
"""What makes a frame unusual: of which word, which bit."""


def returning(
    room: Room, chance: random.Random, address: int, error: int, shared: dict[int, int], odd: tuple[int, int] | None
) -> tuple[int, int, list[int]]:
    """Run the code for IRETQ: vector, place and what the registers were before."""
    code, _, _ = user_returns.return_code(SHOWN, USER_CODE)
    frame = list(FRAME)
    if odd is not None:
        frame[odd[0]] ^= odd[1]
    struct.pack_into("<5Q", room.memory, STACK, *frame)
    registers = [chance.getrandbits(64) for _ in range(16)]
    registers[r.RSP] = STACK
    words = {
        abi.RETURN_SLOW: SLOW + 1,
        abi.RETURN_THREAD: 77,
        abi.CROSSING_THREAD: 77,
        user_faults.RIP: RIP,
        user_faults.ERROR: error,
        user_faults.ADDRESS: address,
        user_faults.COUNT: 5,
        user_returns.SEEN: 4,
        **{abi.SELECTORS + 8 * index: 0 for index in range(6)},
    }
    return *go(room, code, registers, {**words, **shared}), registers


def word(room: Room, offset: int) -> int:
    return int(room.memory[SHARED : SHARED + 4096].cast("Q")[offset >> 3])


def kept(room: Room, registers: list[int], *but: int) -> bool:
    """Whether registers are what they were; RAX is the fixup's to put back."""
    gpr = room.engine.registers.gpr
    return all(gpr[number] == registers[number] for number in OWN if number not in (r.RAX, *but))


@pytest.mark.parametrize("seed", range(4))
def test_an_entry_is_made_as_the_hypervisor_makes_it_or_not_at_all(room: Room, seed: int) -> None:
    chance, made = random.Random(seed), 0
    code, halt, _ = user_returns.return_code(SHOWN, USER_CODE)
    words = room.memory.cast("Q")
    for _ in range(80):
        scene = Scene(room, chance, chance.choice((0x40_0000, 0x7FFF_FF00_0000)) + chance.randrange(1 << 21))
        scene.lay()
        guest = scene.entry()
        if scene.unusual():
            guest ^= chance.choice((w.PRESENT, w.USER, w.ACCESSED, SIZE))
        at = scene.page(0)
        words[(TABLES + 0x3000 >> 3) + at], words[(SHADOW + 0x3000 >> 3) + at] = guest, chance.choice((0, 0x5025))
        error = chance.choice((4, 6, 0x14))
        plain = expected(room, guest) & w.WRITABLE if scene.usual else 0
        allowed = (not error & 2 or plain) and not (error & 16 and guest & w.NO_EXECUTE)
        odd = chance.choice(ODD) if scene.unusual() else None
        vector, place, registers = returning(room, chance, scene.address, error, {}, odd)
        if not (scene.usual and allowed):
            assert (vector, place) == (6, SLOW + 1)
            assert kept(room, registers)
            assert room.engine.registers.gpr[r.RSP] == STACK
            assert word(room, user_returns.LOGGED) == word(room, user_returns.RETURNS) == 0
            continue
        made += 1
        gpr, offset = room.engine.registers.gpr, 0x3000 + 8 * at
        assert (vector, place) == (13, CODE + halt)
        assert (gpr[r.RAX], gpr[r.RCX], gpr[r.RDX]) == (expected(room, guest), offset, RIP)
        assert kept(room, registers, r.RCX, r.RDX)
        assert gpr[r.RSP] == RSP
        assert room.engine.registers.rflags & (r.FLAG_CF | r.FLAG_DF) == r.FLAG_CF | r.FLAG_DF
        assert (word(room, abi.RETURN_LOG), word(room, abi.RETURN_LOG + 8)) == (offset, guest)
        assert [word(room, one) for one in user_returns.SAVED[1:]] == [registers[n] for n in (1, 2, 6, 7)]
        assert (word(room, user_returns.SEEN), word(room, user_returns.RETURNS)) == (5, 1)
    assert 15 < made < 70
    assert len(code) < 1792


@pytest.mark.parametrize(
    "shared",
    [
        {user_faults.RIP: RIP + 1},
        {user_returns.SEEN: 5},
        {user_returns.LOGGED: user_returns.MOST},
        {user_returns.ROOT_OF: TABLES},
        {user_returns.WAITING: 2, user_returns.LISTED: 2},
        {abi.SELECTORS + 8 * r.FS: 0x2B},
        {abi.SELECTORS + 8 * r.DS: 0x2B},
    ],
)
def test_what_is_unusual_goes_on_to_the_iretq(room: Room, shared: dict[int, int]) -> None:
    chance = random.Random(3)
    scene = Scene(room, chance, 0x40_0000)
    while not scene.usual or not room.memory[SOURCES]:
        scene.usual = True
        scene.lay()
    room.memory.cast("Q")[TABLES + 0x3000 >> 3] = 0x5000 | USED
    assert returning(room, chance, 0x40_0000, 4, {}, None)[0] == 13
    assert returning(room, chance, 0x40_0000, 4, shared, None)[:2] == (6, SLOW + 1)


def laid(room: Room, chance: random.Random, address: int) -> Scene:
    """Tables of which nothing is unusual."""
    while True:
        scene = Scene(room, chance, address)
        scene.lay()
        if scene.usual:
            return scene


@pytest.mark.parametrize("known", [True, False])
def test_several_are_made_where_their_block_is_known(room: Room, known: bool) -> None:
    chance = random.Random(9)
    address = 0x43_4000
    laid(room, chance, address)
    words = room.memory.cast("Q")
    first, block = 0x30 & 511, (address >> 16 & 255) * 128
    guests = [0x5000 + 4096 * number | USED if number != 7 else 0 for number in range(16)]
    for number, guest in enumerate(guests):
        words[(TABLES + 0x3000 >> 3) + first + number] = guest
        words[(BLOCKS + block >> 3) + number] = guest ^ (0 if known or number != 15 else w.DIRTY)
    _, _, together = user_returns.return_code(SHOWN, USER_CODE)
    vector, place, registers = returning(room, chance, address, 4, {}, None)
    assert (vector, place) == ((13, CODE + together) if known else (6, SLOW + 1))
    if known:
        gpr = room.engine.registers.gpr
        assert (gpr[r.RAX], gpr[r.RCX], gpr[r.RDX]) == (block, 0x3000 + 8 * first, RIP)
        assert (word(room, abi.RETURN_LOG), word(room, abi.RETURN_LOG + 8)) == (0x3000 + 8 * first | 1, block)
        assert returning(room, chance, address, 6, {}, None)[0] == 6, "none of these is for a store"
    else:
        assert kept(room, registers)


def test_a_page_that_was_invalidated_alone_is_mended_by_its_entry(room: Room) -> None:
    chance, address = random.Random(1), 0x40_5000
    laid(room, chance, address)
    room.memory.cast("Q")[(TABLES + 0x3000 >> 3) + 5] = 0x5000 | USED
    waits = {user_returns.LISTED: 2, user_returns.WAITING: 1, abi.CROSSING_THREAD: abi.NO_THREAD}
    other = {**waits, abi.INVALIDATE_LIST: address, abi.INVALIDATE_LIST + 8: address + 4096}
    assert returning(room, chance, address, 4, other, None)[0] == 6
    assert word(room, abi.CROSSING_THREAD) == abi.NO_THREAD
    same = {**waits, abi.INVALIDATE_LIST: 0x9000, abi.INVALIDATE_LIST + 8: address + 0xFFF}
    assert returning(room, chance, address, 4, same, None)[0] == 13
    assert (word(room, user_returns.WAITING), word(room, user_returns.LISTED)) == (0, 2)
    assert word(room, abi.CROSSING_THREAD) == 77


@pytest.mark.parametrize("seed", range(3))
def test_a_page_is_invalidated_without_an_exit_and_the_kernels_entry_of_it_is_named(room: Room, seed: int) -> None:
    chance, done = random.Random(seed), 0
    code, clear = user_returns.invalidating_code(SHOWN)
    words = room.memory.cast("Q")
    for _ in range(60):
        address = chance.choice((0x40_0000, 0x7FFF_FF00_0000)) + chance.randrange(1 << 21)
        scene = Scene(room, chance, address)
        scene.lay()
        mapped = chance.random() < 0.2
        words[(SHADOW + 0x3000 >> 3) + scene.page(0)] = 0x5025 if mapped else 0
        closed, full = scene.unusual(), scene.unusual()
        registers = [chance.getrandbits(64) for _ in range(16)]
        registers[r.RSP] = STACK
        shared = {
            abi.SCRATCH + 8: 0x1234,
            abi.INVALIDATE_ADDRESS: address,
            abi.INVALIDATE_BEHIND: SLOW,
            abi.RETURN_THREAD: abi.NO_THREAD if closed else 5,
            user_returns.LISTED: user_returns.MOST if full else 3,
            user_returns.WAITING: 1,
            abi.CROSSING_THREAD: 5,
        }
        vector, place = go(room, code, registers, shared)
        if vector == 13:
            assert mapped
            assert place == CODE + clear
            assert room.engine.registers.gpr[r.RCX] == 0x3000 + 8 * scene.page(0)
            room.engine.registers.rip = place + 1
            for number in (r.RCX, r.R11):
                room.engine.registers.gpr[number] = chance.getrandbits(64)
            vector, _ = resume(room)
        else:
            assert not (mapped and scene.usual)
        assert vector == 6
        gpr = room.engine.registers.gpr
        assert room.engine.registers.rflags & (r.FLAG_CF | r.FLAG_OF) == r.FLAG_CF | r.FLAG_OF
        assert [gpr[n] for n in range(16)] == [0x1234 if n == r.RCX else registers[n] for n in range(16)]
        listed, waiting = word(room, user_returns.LISTED), word(room, user_returns.WAITING)
        if scene.usual:
            done += 1
            assert word(room, abi.INVALIDATE_BEHIND) == SLOW + 1
            assert (listed, waiting, word(room, abi.INVALIDATE_LIST + 24)) == (4, 2, address)
            assert word(room, abi.CROSSING_THREAD) == abi.NO_THREAD
        elif word(room, abi.INVALIDATE_BEHIND) == SLOW:
            assert (listed, waiting, word(room, abi.CROSSING_THREAD)) == (shared[user_returns.LISTED], 1, 5)
        else:
            assert scene.absent, "nothing led to the page in user code's tables: it is noted, and nothing waits"
            assert (listed, waiting, word(room, abi.CROSSING_THREAD)) == (4, 1, 5)
    assert 15 < done < 55
    assert len(code) < 4096 - 2880


def test_an_address_of_the_upper_half_is_the_hypervisors_to_invalidate(room: Room) -> None:
    laid(room, random.Random(2), 0x40_0000)
    shared = {abi.INVALIDATE_ADDRESS: 0xFFFF_8880_0000_0000, abi.INVALIDATE_BEHIND: SLOW, abi.RETURN_THREAD: 5}
    go(room, user_returns.invalidating_code(SHOWN)[0], [STACK] * 16, shared)
    assert word(room, abi.INVALIDATE_BEHIND) == SLOW
