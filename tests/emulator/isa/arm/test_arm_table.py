"""The ARMv7 table: every example is matched by its own row alone, and what is no instruction of a row is left alone."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from keystone import KS_ARCH_ARM, KS_MODE_ARM, KS_MODE_THUMB, Ks, KsError

from emulator.isa.arm.proof_cases import cases_of
from emulator.isa.arm.row import A32, T32
from emulator.isa.arm.rows_a32 import DATA_PROCESSING
from emulator.isa.arm.table import A32_TABLE, ROW_OF_NAME, ROWS, T32_TABLE, TABLES, encodings, instruction, planted
from emulator.isa.sensitive import Patterns, SensitiveInstruction

_ASSEMBLERS = {A32: Ks(KS_ARCH_ARM, KS_MODE_ARM), T32: Ks(KS_ARCH_ARM, KS_MODE_THUMB)}


def state_of(row: SensitiveInstruction) -> str:
    assert isinstance(row.match, Patterns)
    return row.match.state


def word_of(code: bytes, state: str) -> tuple[int, int]:
    """The word and size of the instruction that `code` begins with."""
    if state == A32:
        return struct.unpack("<I", code[:4])[0], 4
    return instruction(*struct.unpack("<HH", code.ljust(4, b"\0")[:4]))


def assembled(row: SensitiveInstruction) -> bytes | None:
    """The example's bytes by the assembler at hand, or None where it does not know the instruction."""
    if row.example.startswith(".inst"):
        return None
    try:
        code, _ = _ASSEMBLERS[state_of(row)].asm(row.example)
    except KsError:
        return None
    return bytes(code)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_example_is_matched_by_its_row_alone(row: SensitiveInstruction) -> None:
    state = state_of(row)
    code = cases_of(row)[0].code
    word, size = word_of(code, state)
    assert len(code) == size
    matching = [
        other.name
        for other in TABLES[state].rows
        if isinstance(other.match, Patterns) and any(p.size == size and p.matches(word) for p in other.match.patterns)
    ]
    assert matching == [row.name]
    assert TABLES[state].row_of(word, size) is row
    made = assembled(row)
    assert made is None or word_of(made, state) == (word, size), row.example


def test_most_examples_were_assembled_and_none_of_dall_and_nieh_is_missing() -> None:
    assert sum(assembled(row) is not None for row in ROWS) > 0.9 * len(ROWS)
    names = {"CPSIE", "CPSID", "CPS", "MRS CPSR", "MRS SPSR", "MSR CPSR", "MSR SPSR", "RFE", "SRS"}
    names |= {"LDM exception return", "LDM user registers", "STM user registers", "LDRT", "LDRBT", "STRT", "STRBT"}
    names |= {f"{name} PC" for name, _, _ in DATA_PROCESSING}
    assert len(DATA_PROCESSING) == 12
    assert names <= {row.name for row in A32_TABLE.rows}
    assert not any(ROW_OF_NAME[name].privileged for name in names)


@pytest.mark.skipif(shutil.which("arm-linux-gnueabihf-as") is None, reason="no arm-linux-gnueabihf-as")
@pytest.mark.parametrize("state", [A32, T32])
def test_the_gnu_assembler_makes_the_same_of_the_examples(state: str, tmp_path: Path) -> None:
    rows = [row for row in TABLES[state].rows if not row.example.startswith(".inst")]
    source = f".syntax unified\n.arch armv7ve\n.arch_extension sec\n.fpu vfpv4\n.{'arm' if state == A32 else 'thumb'}\n"
    source += "".join(f"{row.example}\n" for row in rows)
    (tmp_path / "all.s").write_text(source)
    subprocess.run(["arm-linux-gnueabihf-as", "-o", "all.o", "all.s"], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(
        ["arm-linux-gnueabihf-objcopy", "-O", "binary", "-j", ".text", "all.o", "all.bin"], cwd=tmp_path, check=True
    )
    code = (tmp_path / "all.bin").read_bytes()
    at = 0
    for row in rows:
        word, size = word_of(code[at:], state)
        assert TABLES[state].row_of(word, size) is row, row.example
        at += size


@pytest.mark.parametrize(
    ("word", "what"),
    [
        (0xF1000000, "CPS with neither imod nor M, as AES tables have it"),
        (0xF1080000, "CPSIE of no flag"),
        (0xF1040080, "CPS with the reserved imod"),
        (0xF10A0040 | 0x04, "CPSIE with a mode that is none"),
        (0xF1000080, "CPS with flags and no imod"),
        (0xE128F000, "MSR APSR_nzcvq, r0"),
        (0xE320F000, "NOP"),
        (0xE320F004, "SEV"),
        (0xEE070FBA, "DMB by CP15"),
        (0xEE070F95, "DSB by CP15 with another register"),
        (0xE1A0F00E, "MOV PC, LR"),
        (0xE8BD8000, "POP {PC}"),
        (0xE5911000, "LDR"),
        (0xEEF1FA10, "VMRS APSR_nzcv, FPSCR"),
        (0xF57FF04F, "DSB"),
    ],
)
def test_a_word_that_only_looks_sensitive_is_left_alone(word: int, what: str) -> None:
    if what.startswith("DSB by CP15"):
        word = 0xEE070F9A
    assert A32_TABLE.row_of(word) is None, what


@pytest.mark.parametrize(
    ("word", "size"),
    [(0xBF00, 2), (0xBF40, 2), (0xB660, 2), (0xF3AF8000, 4), (0xF3AF8600, 4), (0xF3808800, 4)],
)
def test_a_thumb_instruction_that_only_looks_sensitive_is_left_alone(word: int, size: int) -> None:
    assert T32_TABLE.row_of(word, size) is None


def test_the_users_thread_register_is_read_as_it_is_though_the_kernel_gets_another() -> None:
    for row in (ROW_OF_NAME["MRC TPIDRURO"], ROW_OF_NAME["MRC TPIDRURO (T32)"]):
        assert not planted(row)
    assert A32_TABLE.row_of(0xEE1D0F70) is ROW_OF_NAME["MRC TPIDRURO"]


def test_every_condition_of_an_instruction_is_matched_and_the_space_without_conditions_is_not() -> None:
    for condition in range(15):
        assert A32_TABLE.row_of(condition << 28 | 0x010F0000) is ROW_OF_NAME["MRS CPSR"]
    assert A32_TABLE.row_of(0xF10F0000) is not ROW_OF_NAME["MRS CPSR"]


def test_every_coprocessor_14_and_15_access_has_a_row_but_for_the_innocuous_ones() -> None:
    innocuous = set()
    for opc1 in range(8):
        for crn in range(16):
            for crm in range(16):
                for opc2 in range(8):
                    for read in (0, 1):
                        word = 0xEE000F10 | opc1 << 21 | read << 20 | crn << 16 | opc2 << 5 | crm
                        if A32_TABLE.row_of(word) is None:
                            innocuous.add((opc1, crn, crm, opc2, read))
    assert innocuous == {(0, 7, 5, 4, 0), (0, 7, 10, 4, 0), (0, 7, 10, 5, 0)}


def test_the_encodings_say_mask_value_and_state() -> None:
    assert encodings(ROW_OF_NAME["MRS CPSR"]) == ["a32: word & 0fff0fff = 010f0000, condition not 1111, 1 exceptions"]
    assert encodings(ROW_OF_NAME["SVC (T32)"]) == ["t32: word & ff00 = df00"]


def test_what_does_not_trap_needs_a_planted_trap_but_for_setend() -> None:
    assert planted(ROW_OF_NAME["CPSID"])
    assert planted(ROW_OF_NAME["MOVS PC"])
    assert not planted(ROW_OF_NAME["MRC SCTLR"])
    assert not planted(ROW_OF_NAME["SETEND"])
