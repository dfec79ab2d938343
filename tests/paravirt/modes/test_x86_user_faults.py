"""The code that sees whose a page fault of user code is decides as the walk of the guest's tables does, and delivers it
as the processor would."""

import random
import struct
from collections.abc import Iterator

import pytest

from bt.bench.room import CODE, Room
from emulator.engine.engines import open_engine
from emulator.engine.exit import Exit
from emulator.isa.x86 import registers as r
from emulator.isa.x86 import walk as w
from emulator.isa.x86.processor import Fault
from paravirt import abi
from paravirt.modes.x86 import user_faults

ROOT, SHARED, FRAME, GATE, TASK, KERNEL_STACK, TABLES, HANDLER = (
    *(0x1000, 0x30_0000, 0x30_1000, 0x30_2000, 0x30_3000, 0x30_5000),
    *(0x31_0000, 0x10_2000),
)
SIZE = 0x40_0000
SELECTOR, USER_DATA, USER_CODE = 0x10, 0x2B, 0x33
UD2 = b"\x0f\x0b"
SEVEN = tuple(abi.CROSSING_FAULT + 8 * number for number in range(7))
OWN = tuple(number for number in range(16) if number not in (r.RSP, r.RCX, r.R11))


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    room = Room(open_engine("x86-64"))
    words = room.memory.cast("Q")
    upper = TABLES - 0x3000
    for level, table in enumerate((ROOT, upper, upper + 0x1000, upper + 0x2000)):
        at = abi.SHARED_PAGE >> 39 - 9 * level & 511
        words[(table >> 3) + at] = (upper + level * 0x1000 if level < 3 else SHARED) | 0x67
    yield room
    room.close()


def entry(chance: random.Random, frame: int, level: int) -> int:
    bits = w.ACCESSED | w.DIRTY
    for bit, likely in ((w.PRESENT, 0.95), (w.WRITABLE, 0.8), (w.USER, 0.9)):
        bits |= bit if chance.random() < likely else 0
    for bit in (w.NO_EXECUTE, 1 << 58, w.LARGE if level > 1 else 0, 1 << 40):
        bits |= bit if chance.random() < 0.04 else 0
    return frame | bits


def lay(chance: random.Random, room: Room, address: int) -> list[int]:
    """Tables on the way to an address; the entries."""
    words, entries = room.memory.cast("Q"), []
    for level in range(4, 0, -1):
        table, below = TABLES + (4 - level) * 4096, TABLES + (5 - level) * 4096
        if chance.random() < 0.02:
            below = SIZE + 4096  # no memory
        entries.append(entry(chance, below, level))
        words[(table >> 3) + (address >> 9 * level + 3 & 511)] = entries[-1]
        if below >= SIZE:
            break
    return entries


def go(room: Room, code: bytes, halt: int, error: int, address: int, registers: list[int]) -> tuple[bool, int]:
    """Run; whether the handler was reached, and RSP then."""
    shared = room.memory[SHARED : SHARED + 4096].cast("Q")
    shared[abi.CONTROL_REGISTERS + 0x18 >> 3] = TABLES | 0x18
    shared[user_faults.TARGET >> 3] = HANDLER
    shared[abi.CROSSING_SAVED >> 3], shared[abi.CROSSING_SAVED + 8 >> 3] = registers[r.RCX], registers[r.R11]
    struct.pack_into("<6Q", room.memory, FRAME, error, 0x1234, USER_CODE, r.FLAG_CF | r.FLAG_IF | 2, 0x5678, USER_DATA)
    room.start(code)
    gpr = room.engine.registers.gpr
    for number in OWN:
        gpr[number] = registers[number]
    gpr[r.RSP] = address
    ends: list[tuple[int, int]] = []

    def handler(exit_: Exit) -> None:
        ends.append((exit_.vector, room.engine.registers.rip))
        room.engine.stop()

    room.run(handler)
    assert ends in ([(6, HANDLER)], [(13, CODE + halt)])
    return ends[0][0] == 6, int(gpr[r.RSP])


@pytest.mark.parametrize("seed", range(6))
def test_a_fault_is_the_guests_own_when_its_tables_forbid_the_access(room: Room, seed: int) -> None:
    chance = random.Random(seed)
    low, high = SELECTOR << 16 | 0x8E << 40 | HANDLER & 0xFFFF | HANDLER >> 16 << 48, 0
    struct.pack_into("<QQ", room.memory, GATE, low, high)
    struct.pack_into("<Q", room.memory, TASK, KERNEL_STACK + 8)
    room.memory[HANDLER : HANDLER + 2] = UD2
    room.engine.code_changed(HANDLER, 2)
    handler = user_faults.Handler(GATE, (low, high), HANDLER, SELECTOR, TASK)
    code, halt = user_faults.fault_code(handler, (0, FRAME), SIZE, USER_DATA, True)
    context = w.GuestContext(root=TABLES, write_protect=True, no_execute=True)
    walker = w.Walker(room.memory.cast("Q"), SIZE, context)
    shared = room.memory[SHARED : SHARED + 4096].cast("Q")
    reached = 0
    for _ in range(60):
        address = chance.choice((0x40_0000, 0x7FFF_FFFF_F000, 0xFFFF_8880_0000_0000)) + chance.randrange(1 << 21)
        entries = lay(chance, room, address)
        write, fetch = chance.choice(((False, False), (True, False), (False, True)))
        error = w.ERROR_USER | (write and w.ERROR_WRITE) | (fetch and w.ERROR_FETCH) | chance.randrange(2)
        registers = [chance.getrandbits(64) for _ in range(16)]
        before = shared[user_faults.COUNT >> 3]
        own, stack = go(room, code, halt, error, address, registers)
        for number in (r.RCX, r.R11, *OWN):
            assert room.engine.registers.gpr[number] == registers[number]
        try:
            walker.walk(address, write, True, fetch)
            expected = None
        except Fault as fault:
            expected = fault
        unusual = any(one & (1 << 40) or one & w.FRAME_MASK > SIZE for one in entries)
        unusual |= any(one & w.LARGE for one in entries[:3])
        if not own:
            assert expected is None or unusual
            continue
        reached += 1
        assert expected is not None
        assert stack == KERNEL_STACK - 48
        pushed = struct.unpack_from("<6Q", room.memory, stack)
        flags = r.FLAG_CF | r.FLAG_IF | r.FLAG_RF | 2
        assert pushed == (expected.error, 0x1234, USER_CODE, flags, 0x5678, USER_DATA)
        assert shared[abi.CONTROL_REGISTERS + 0x10 >> 3] == address
        assert shared[user_faults.COUNT >> 3] == before + 1
        assert (shared[abi.SELECTORS + 8 >> 3], shared[abi.SELECTORS + 16 >> 3]) == (SELECTOR, 0)
        assert shared[0] == abi.INTERRUPTS_DISABLED & (1 << 64) - 1
        assert room.engine.registers.rflags & r.FLAG_CF
    assert 5 < reached < 55


@pytest.mark.parametrize("what", ["gate", "stack segment", "supervisor"])
def test_what_is_unusual_is_left_to_the_hypervisor(room: Room, what: str) -> None:
    low = SELECTOR << 16 | 0x8E << 40 | HANDLER & 0xFFFF | HANDLER >> 16 << 48
    struct.pack_into("<QQ", room.memory, GATE, low ^ (1 if what == "gate" else 0), 0)
    struct.pack_into("<Q", room.memory, TASK, KERNEL_STACK)
    handler = user_faults.Handler(GATE, (low, 0), HANDLER, SELECTOR, TASK)
    data = USER_DATA + 8 if what == "stack segment" else USER_DATA
    code, halt = user_faults.fault_code(handler, (0, FRAME), SIZE, data, False)
    room.memory[TABLES : TABLES + 4096] = bytes(4096)
    registers = list(range(16))
    own, _ = go(room, code, halt, 0 if what == "supervisor" else w.ERROR_USER, 0x1000, registers)
    assert not own
    assert [int(room.engine.registers.gpr[number]) for number in OWN] == list(OWN)
