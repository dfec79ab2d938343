"""The code for traps of a kernel's does what the instruction does, or leaves all as it was for the hypervisor."""

import random
import struct
from collections.abc import Iterator

import pytest

from bt.bench.room import CODE, Room
from emulator.engine.engines import open_engine
from emulator.engine.exit import Exit
from emulator.isa.x86 import registers as r
from emulator.isa.x86.decode import instruction_at
from paravirt import abi
from paravirt.modes.x86 import kernel_traps
from paravirt.modes.x86.kernel_traps import Step, step_of, trapped_code

ROOT, SHARED, TABLES, FRAME, BEHIND, STACK = 0x1000, 0x30_0000, 0x31_0000, 0x32_0000, 0x10_2000, 0x35_0F00
SITE = 0x4000_1000
UD2 = b"\x0f\x0b"
FLAGS = r.FLAG_CF | r.FLAG_OF | r.FLAG_DF | r.FLAG_IF | r.FLAG_FIXED


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    room = Room(open_engine("x86-64"))
    words = room.memory.cast("Q")
    for level, table in enumerate((ROOT, *(TABLES + 0x1000 * number for number in range(3)))):
        at = abi.SHARED_PAGE >> 39 - 9 * level & 511
        words[(table >> 3) + at] = (TABLES + level * 0x1000 if level < 3 else SHARED) | 0x67
    room.memory[BEHIND : BEHIND + 2] = UD2
    room.engine.code_changed(BEHIND, 2)
    yield room
    room.close()


def go(
    room: Room, places: list[list[Step]], rip: int, registers: list[int], shared: dict[int, int], flags: int = FLAGS
) -> int:
    """Trap at `rip` with these registers; the vector of the code's end, which is in RIP. RCX and R11 are saved as the
    engine does."""
    words = room.memory[SHARED : SHARED + 4096].cast("Q")
    for offset in range(0, 0x800, 8):
        words[offset >> 3] = 0
    shared = {abi.CROSSING_SAVED: registers[r.RCX], abi.CROSSING_SAVED + 8: registers[r.R11], **shared}
    for offset, value in shared.items():
        words[offset >> 3] = value
    struct.pack_into("<6Q", room.memory, FRAME, 0, rip, 0x33, flags | r.FLAG_RF, registers[r.RSP], 0x2B)
    code, _ = trapped_code(places, FRAME)
    room.start(code)
    engine = room.engine
    engine.registers.set_segment_base(r.GS, 0x1234_5000)
    for number in range(16):
        engine.registers.gpr[number] = 0x77 if number in (r.RCX, r.R11, r.RSP) else registers[number]
    ends: list[int] = []

    def handler(exit_: Exit) -> None:
        ends.append(exit_.vector)
        engine.stop()

    room.run(handler)
    return ends[0]


def word(room: Room, offset: int) -> int:
    return int.from_bytes(room.memory[SHARED + offset : SHARED + offset + 8], "little")


def general(room: Room) -> list[int]:
    return [int(room.engine.registers.gpr[number]) for number in range(16)]


@pytest.mark.parametrize("number", [n for n in range(16) if n != r.RSP])
def test_a_null_selector_is_loaded_where_there_is_one_and_any_other_load_is_left_alone(room: Room, number: int) -> None:
    chance = random.Random(number)
    for segment in (r.ES, r.DS):
        for value, old, vector in ((0, 0, 6), (0, 0x2B, 13), (0x2B, 0, 13), (3, 0, 13)):
            registers = [chance.getrandbits(64) for _ in range(16)]
            registers[number] = registers[number] & ~0xFFFF | value
            step = Step(SITE, BEHIND, segment, number)
            other = Step(SITE + 8, BEHIND + 8, segment, number)
            copies = {abi.SELECTORS + 8 * segment: old}
            assert go(room, [[other], [step]], SITE, registers, copies) == vector
            assert word(room, kernel_traps.SEGMENTS) == (vector == 6)
            if vector == 6:
                assert general(room) == registers
                assert room.engine.registers.rip == BEHIND
                assert room.engine.registers.rflags & (FLAGS | r.FLAG_RF) == FLAGS
            else:
                kept = dict(kernel_traps.KEPT)
                found = [word(room, kept[n]) if n in kept else value for n, value in enumerate(general(room))]
                assert found == registers
                assert word(room, kernel_traps.RIP) == SITE
                assert room.engine.registers.rip == CODE + trapped_code([[other], [step]], FRAME)[1]


def test_a_trap_anywhere_else_or_of_a_kernel_that_steps_is_the_hypervisors(room: Room) -> None:
    registers = [0x100 + number for number in range(16)]
    registers[r.RAX] = 0
    places = [[Step(SITE, BEHIND, r.ES, r.RAX)]]
    assert go(room, places, SITE, registers, {}) == 6
    assert go(room, places, SITE + 0x100, registers, {}) == 13
    assert word(room, kernel_traps.RIP) == SITE + 0x100
    assert go(room, places, SITE, registers, {}, FLAGS | r.FLAG_TF) == 13


def test_what_is_left_in_the_middle_is_left_where_it_is(room: Room) -> None:
    registers = [0x100 + number for number in range(16)]
    registers[r.RAX] = 0
    steps = [Step(SITE, SITE + 2, r.ES, r.RAX), Step(SITE + 4, BEHIND, r.DS, r.RDI)]
    assert go(room, [steps], SITE, registers, {}) == 13
    assert (word(room, kernel_traps.RIP), word(room, kernel_traps.SEGMENTS)) == (SITE + 4, 1)
    registers[r.RDI] = 0x1_0000
    assert go(room, [steps], SITE, registers, {}) == 6
    assert word(room, kernel_traps.SEGMENTS) == 2


def test_the_base_of_a_null_segment_is_nought_and_swapgs_exchanges_bases() -> None:
    code, _ = trapped_code([[Step(SITE, BEHIND, r.FS, 0)], [Step(SITE, BEHIND, r.GS, 0)], [Step(SITE, BEHIND)]], FRAME)
    texts = []
    while code:
        instruction = instruction_at(code[:15], 0)
        assert instruction is not None
        texts.append(str(instruction))
        code = code[len(instruction) :]
    for base in ("wrfsbase rax", "wrgsbase rax"):
        assert texts[texts.index(base) - 1] == "xor eax,eax"
    at = texts.index("rdgsbase rax")
    assert texts[at + 1].startswith("xchg")
    assert texts[at + 2] == "wrgsbase rax"


def test_a_null_gs_between_two_swapgs_as_linux_loads_it_leaves_the_kernels_base(room: Room) -> None:
    registers = [0x100 + number for number in range(16)]
    registers[r.RDI] = 0
    steps = [Step(SITE, SITE + 3), Step(SITE + 3, SITE + 5, r.GS, r.RDI), Step(SITE + 5, BEHIND)]
    room.engine.set_control(r.CR0_PE | r.CR0_PG, r.CR4_PAE | r.CR4_FSGSBASE, 0x500)
    assert go(room, [steps], SITE, registers, {abi.KERNEL_GS_BASE: 0x7654_3000}) == 6
    assert room.engine.registers.rip == BEHIND
    assert room.engine.registers.segment_base(r.GS) == 0x1234_5000
    assert word(room, abi.KERNEL_GS_BASE) == 0
    assert (word(room, kernel_traps.SWAPS), word(room, kernel_traps.SEGMENTS)) == (2, 1)
    assert general(room) == registers


@pytest.mark.parametrize(
    ("text", "segment", "register"),
    [("8ee0", r.FS, r.RAX), ("418ec1", r.ES, r.R9), ("488ede", r.DS, r.RSI), ("0f01f8", -1, 0)],
)
def test_instructions_that_are_done(text: str, segment: int, register: int) -> None:
    instruction = instruction_at(bytes.fromhex(text), 0xFFFF_FFFF_8100_0000)
    assert instruction is not None
    step = step_of(instruction)
    assert step is not None
    assert (step.segment, step.register, step.behind - step.at) == (segment, register, len(text) // 2)


@pytest.mark.parametrize("text", ["8ed0", "8e20", "8eec", "0f20d8", "cd80"])
def test_instructions_that_are_not(text: str) -> None:
    instruction = instruction_at(bytes.fromhex(text), 0xFFFF_FFFF_8100_0000)
    assert instruction is None or step_of(instruction) is None
    null = instruction_at(bytes.fromhex("8ee0"), 0xFFFF_8100_0000_0000)
    assert null is not None
    assert step_of(null) is None, "no operand of 32 bits names it"


def test_as_many_as_linux_has_fit() -> None:
    steps = [[Step(SITE + 16 * n, BEHIND, r.ES, r.RAX)] for n in range(6)]
    swaps = [[Step(SITE, SITE), Step(SITE, SITE, r.GS, r.RDI), Step(SITE, BEHIND)]]
    assert len(trapped_code(steps + swaps, FRAME)[0]) <= kernel_traps.MOST_BYTES
