"""Loads and stores taken apart: against the engine, which executes them."""

from collections.abc import Iterator

import keystone
import pytest

from emulator.engine.aarch64 import AArch64Engine
from emulator.engine.engines import open_unicorn_aarch64
from emulator.isa.aarch64.access import address_of, decode, loaded
from emulator.isa.aarch64.encoding import BRK
from emulator.isa.aarch64.room import BASE, CODE, DATA, STACK
from tests.emulator.engine.aarch64_guest import Guest

ASSEMBLER = keystone.Ks(keystone.KS_ARCH_ARM64, keystone.KS_MODE_LITTLE_ENDIAN)
LOADS = [
    "ldr x0, [x1]",
    "ldr w0, [x1, #12]",
    "ldrh w0, [x1, #6]",
    "ldrb w0, [x1, #3]",
    "ldrsb x0, [x1, #7]",
    "ldrsb w0, [x1, #7]",
    "ldrsh x0, [x1, #6]",
    "ldrsh w0, [x1, #14]",
    "ldrsw x0, [x1, #4]",
    "ldr x0, [x1, #8]!",
    "ldr x0, [x1], #16",
    "ldur x0, [x1, #-8]",
    "ldtr w0, [x1, #4]",
    "ldtrsb x0, [x1, #15]",
    "ldr x0, [x1, x2]",
    "ldr x0, [x1, x2, lsl #3]",
    "ldr w0, [x1, w3, sxtw #2]",
    "ldrb w0, [x1, w3, uxtw]",
    "ldp x0, x4, [x1]",
    "ldp w0, w4, [x1, #8]!",
    "ldpsw x0, x4, [x1], #8",
    "ldr x0, [sp]",
    "ldr x0, #16",
    "ldrsw x0, #20",
    "ldr xzr, [x1]",
]
STORES = [
    text.replace("ld", "st") for text in LOADS if "s" not in text[2:5] and "#16" not in text and "#20" not in text
]


def assemble(text: str) -> int:
    return int.from_bytes(bytes(ASSEMBLER.asm(text)[0]), "little")


@pytest.fixture
def engine() -> Iterator[AArch64Engine]:
    opened = open_unicorn_aarch64()
    yield opened
    opened.close()


def prepare(engine: AArch64Engine, word: int) -> Guest:
    guest = Guest(engine, [word, BRK, 0x8877_6655, 0x4433_2211, 0xFFEE_DDCC, 0x8000_0001], 0)
    for at in (DATA, STACK - 64):
        for number in range(128):
            guest.memory[at - BASE + number] = (number * 37 + 129) & 0xFF
    state = engine.registers
    state.gpr[0], state.gpr[1], state.gpr[2], state.gpr[3], state.gpr[4] = 0x0123_4567_89AB_CDEF, DATA + 64, 2, 4, 77
    return guest


@pytest.mark.parametrize("text", LOADS)
def test_a_load_taken_apart_loads_what_the_engine_loads(engine: AArch64Engine, text: str) -> None:
    guest = prepare(engine, assemble(text))
    gpr, access = engine.registers.gpr, decode(assemble(text))
    assert access is not None
    assert access.load
    at = address_of(access, gpr, CODE) - BASE
    expected = list(gpr)
    if access.writeback:
        expected[access.base] += access.writeback
    for number, register in enumerate((access.first, access.second)):
        if 0 <= register < 31:
            start = at + number * access.size
            value = int.from_bytes(guest.memory[start : start + access.size], "little")
            expected[register] = loaded(access, value)
    guest.run(lambda _exit: True)
    assert list(gpr) == expected


@pytest.mark.parametrize("text", STORES)
def test_a_store_taken_apart_stores_what_the_engine_stores(engine: AArch64Engine, text: str) -> None:
    guest = prepare(engine, assemble(text))
    gpr, access = engine.registers.gpr, decode(assemble(text))
    assert access is not None
    assert not access.load
    at = address_of(access, gpr, CODE) - BASE
    expected = bytearray(guest.memory)
    for number, register in enumerate((access.first, access.second)):
        if register >= 0:
            value = gpr[register] if register < 31 else 0
            start = at + number * access.size
            expected[start : start + access.size] = (value & (1 << 8 * access.size) - 1).to_bytes(access.size, "little")
    base = gpr[access.base] + access.writeback
    guest.run(lambda _exit: True)
    assert bytes(guest.memory) == expected
    assert gpr[access.base] == base


@pytest.mark.parametrize(
    "text",
    ["ldxr x0, [x1]", "stlr x0, [x1]", "prfm pldl1keep, [x1]", "ldr q0, [x1]", "add x0, x1, x2", "b #16", "nop", "ret"],
)
def test_what_software_does_not_do_is_not_taken_apart(text: str) -> None:
    assert decode(assemble(text)) is None
