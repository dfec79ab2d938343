"""The AArch64 table: every example belongs to its row alone, and registers of user code to none."""

import keystone
import pytest
from capstone import CS_ARCH_ARM64, CS_MODE_ARM, Cs

from emulator.isa.aarch64 import encoding as e
from emulator.isa.aarch64.registers import BY_NAME, INNOCUOUS, REGISTERS
from emulator.isa.aarch64.table import ROW_OF_NAME, ROWS, TABLE, encodings, planted
from emulator.isa.sensitive import Patterns, SensitiveInstruction

ASSEMBLER = keystone.Ks(keystone.KS_ARCH_ARM64, keystone.KS_MODE_LITTLE_ENDIAN)


def assemble(example: str) -> int:
    if example.startswith(".inst "):
        return int(example[6:], 16)
    return int.from_bytes(bytes(ASSEMBLER.asm(example)[0]), "little")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_example_belongs_to_its_row_alone(row: SensitiveInstruction) -> None:
    word = assemble(row.example)
    assert TABLE.row_of(word) is row
    matching = [
        other.name
        for other in ROWS
        if isinstance(other.match, Patterns) and any(pattern.matches(word) for pattern in other.match.patterns)
    ]
    assert matching == [row.name]


@pytest.mark.parametrize("name", INNOCUOUS)
def test_a_register_of_user_code_is_innocuous(name: str) -> None:
    assert TABLE.row_of(e.mrs(INNOCUOUS[name], 3)) is None
    assert TABLE.row_of(e.msr(INNOCUOUS[name], 3)) is None


@pytest.mark.parametrize(
    "word", [e.NOP, e.ISB, 0xD503_3F9F, 0xD503_203F, 0xD65F_03C0, 0xD61F_0000, 0xF940_0020, 0xB840_0C20, 0xD503_3F5F]
)
def test_barriers_hints_branches_and_plain_accesses_are_innocuous(word: int) -> None:
    assert TABLE.row_of(word) is None


def test_every_register_has_a_row_for_each_direction_it_has() -> None:
    for one in REGISTERS:
        for letter, word in (("r", e.mrs(one.encoding, 7)), ("w", e.msr(one.encoding, 7))):
            row = TABLE.row_of(word)
            assert row is not None
            assert row.name.endswith("(any other register)") == (letter not in one.access), one.name


def test_armv8_register_names_are_those_of_a_disassembler() -> None:
    decoder = Cs(CS_ARCH_ARM64, CS_MODE_ARM)
    for one in REGISTERS:
        if "r" in one.access and not one.later:
            _, _, _, operands = next(decoder.disasm_lite(e.mrs(one.encoding).to_bytes(4, "little"), 0))
            assert operands == f"x0, {one.name.lower()}", one.name


def test_the_16_bit_name_of_a_register_is_that_of_its_fields() -> None:
    assert e.fields(BY_NAME["SP_EL0"].encoding) == (3, 0, 4, 1, 0)
    assert e.mrs(BY_NAME["SP_EL0"].encoding, 5) == 0xD538_4105


def test_only_what_goes_on_silently_is_planted() -> None:
    silent = {row.name for row in ROWS if planted(row)}
    assert {"LDTR", "STTRB", "MRS TPIDRRO_EL0", "MRS TPIDR_EL0", "MRS DCZID_EL0"} <= silent
    assert not silent & {"ERET", "SVC", "MRS SP_EL0", "MSR DAIFSet (immediate)", "WFI", "DC ZVA"}


def test_encodings_are_words_with_their_masks() -> None:
    assert encodings(ROW_OF_NAME["ERET"]) == ["d69f03e0/ffffffff"]
    assert encodings(ROW_OF_NAME["LDTR"]) == ["b8400800/ffe00c00", "f8400800/ffe00c00"]
