"""The x86 tables: complete against an independent list, well formed, and refused when it is not."""

import ast
import inspect
import itertools
import re
from dataclasses import replace
from typing import Any, cast

import keystone
import pytest
from iced_x86 import Code, OpCodeInfo

from emulator.isa.operation import Operation
from emulator.isa.sensitive import Codes, Pattern, Route, SensitiveInstruction, UserBehaviour
from emulator.isa.x86 import proof_cases, proof_cases32
from emulator.isa.x86.decode import instruction_at, row_of
from emulator.isa.x86.row import in_mode
from emulator.isa.x86.row import row as make_row
from emulator.isa.x86.rows_unprivileged import ROBIN_AND_IRVINE
from emulator.isa.x86.table import (
    ENTERING,
    OVERTAKEN,
    PLANTED,
    ROW_OF_CODE,
    ROW_OF_CODE_32,
    ROW_OF_NAME,
    ROWS,
    ROWS_32,
    SENSITIVE,
    index_codes,
    rows_of,
)

CASES = {64: proof_cases.CASES, 32: proof_cases32.CASES}
EVERY_ROW = [(64, row) for row in ROWS] + [(32, row) for row in ROWS_32]

NAMES = {value: name for name, value in vars(Code).items() if name.isupper() and isinstance(value, int)}

WRITTEN_OTHERWISE = {
    "call far fword ptr [rax]": "call fword ptr [rax]",
    "jmp far fword ptr [rax]": "jmp fword ptr [rax]",
    "int 0x30": "int 30h",
    "int3": "int 3",
    "monitor": "monitor rax, rcx, rdx",
    "mwait": "mwait rax, rcx",
    "lgdt [rax]": "lgdt fword ptr [rax]",
    "lidt [rax]": "lidt fword ptr [rax]",
    "invpcid rcx, [rax]": "invpcid rcx, oword ptr [rax]",
    "vmxon [rax]": "vmxon qword ptr [rax]",
    "vmclear [rax]": "vmclear qword ptr [rax]",
    "vmptrld [rax]": "vmptrld qword ptr [rax]",
    "vmptrst [rax]": "vmptrst qword ptr [rax]",
    "invept rcx, [rax]": "invept rcx, oword ptr [rax]",
    "invvpid rcx, [rax]": "invvpid rcx, oword ptr [rax]",
    "vmrun": "vmrun rax",
    "vmload": "vmload rax",
    "vmsave": "vmsave rax",
    "skinit": "skinit eax",
    "invlpga": "invlpga rax, ecx",
    "clrssbsy [rax]": "clrssbsy qword ptr [rax]",
}
"""Examples that iced-x86 prints with operands that the manual leaves out, or in its own style."""


def narrow(text: str) -> str:
    return re.sub(r"\br([abcd]x)\b", r"e\1", text)


WRITTEN_OTHERWISE_32 = {narrow(example): narrow(printed) for example, printed in WRITTEN_OTHERWISE.items()}


def info_of(code: int) -> OpCodeInfo:
    return OpCodeInfo(cast("Any", code))


def codes(row: SensitiveInstruction) -> frozenset[int]:
    assert isinstance(row.match, Codes)
    return row.match.codes


def is_restricted(code: int, bits: int) -> bool:
    """Whether iced-x86's own data calls an encoding of a mode privileged or bound to a level."""
    info = info_of(code)
    decodes = info.intel_decoder64 if bits == 64 else info.intel_decoder32
    if not (in_mode(code, bits) and decodes) or info.decoder_option:
        return False
    return info.is_privileged or info.may_require_cpl0 or info.is_input_output or not (info.cpl0 and info.cpl3)


@pytest.mark.parametrize("bits", [64, 32])
def test_every_encoding_that_the_decoder_calls_privileged_has_a_row(bits: int) -> None:
    restricted = {code for code in NAMES if is_restricted(code, bits)}
    assert len(restricted) > 100
    assert {NAMES[code] for code in restricted - SENSITIVE} == set()


@pytest.mark.parametrize("bits", [64, 32])
def test_every_encoding_of_a_rows_mnemonic_is_in_the_table_unless_it_touches_no_privileged_state(bits: int) -> None:
    innocuous_forms = ("MOV", "PUSH", "POP", "CALL", "JMP")
    mnemonics = {info_of(code).mnemonic for code in SENSITIVE}
    strays = {
        NAMES[code]
        for code in NAMES
        if in_mode(code, bits)
        and info_of(code).mnemonic in mnemonics
        and not info_of(code).decoder_option
        and code not in SENSITIVE
    } - {"POPW_CS"}  # of the 8086 alone: 0F begins a longer opcode on everything since
    assert {name for name in strays if not name.startswith(innocuous_forms)} == set()
    privileged_operands = ("Sreg", "FS", "GS", "SS", "DS", "ES", "CS", "m16:", "ptr16:")
    forms = [info_of(getattr(Code, name)).instruction_string for name in strays]
    assert [form for form in forms if any(operand in form for operand in privileged_operands)] == []


def test_every_row_of_a_mode_has_encodings_of_that_mode_alone() -> None:
    assert {NAMES[code] for bits, row in EVERY_ROW for code in codes(row) if not in_mode(code, bits)} == set()
    assert set(ROW_OF_CODE_32) | set(index_codes(ROWS)) == SENSITIVE


def test_there_is_no_table_of_real_mode() -> None:
    with pytest.raises(ValueError, match="16-bit"):
        rows_of(16)


def test_a_row_that_both_modes_have_says_the_same_of_both() -> None:
    for row in ROWS_32:
        other = ROW_OF_NAME[row.name]
        assert replace(row, match=other.match, example=other.example) == other


def test_robin_and_irvines_seventeen_are_all_there_and_not_privileged() -> None:
    assert len(ROBIN_AND_IRVINE) == 17
    names = {row.name: row for row in ROWS_32}
    assert [name for group in ROBIN_AND_IRVINE.values() for name in group if names[name].privileged] == []


def test_trapping_rows_need_no_planted_trap_save_those_that_a_host_hypervisor_takes() -> None:
    for row in ROWS:
        planted = codes(row) & PLANTED
        if row.privileged:
            assert planted == codes(row) & OVERTAKEN, row.name
        else:
            assert planted == codes(row) - ENTERING, row.name


def test_what_enters_the_hypervisor_by_itself_is_not_planted() -> None:
    assert not ENTERING & PLANTED
    assert {ROW_OF_CODE[code].operation for code in ENTERING} == {Operation.SOFTWARE_INTERRUPT, Operation.SYSTEM_CALL}


def test_all_x86_operations_have_a_row() -> None:
    (body,) = (node.body for node in ast.parse(inspect.getsource(Operation)).body if isinstance(node, ast.ClassDef))
    named = {
        member.targets[0].id
        for member, text in itertools.pairwise(body)
        if isinstance(member, ast.Assign)
        and isinstance(member.targets[0], ast.Name)
        and isinstance(text, ast.Expr)
        and ast.unparse(text).strip("'\"").startswith("x86")
    }
    assert len(named) > 40
    assert named - {row.operation.name for row in ROWS} == set()


def name_of(value: object) -> str:
    return value.name if isinstance(value, SensitiveInstruction) else str(value)


@pytest.mark.parametrize(("bits", "row"), EVERY_ROW, ids=name_of)
def test_the_example_is_matched_by_its_row_alone(bits: int, row: SensitiveInstruction) -> None:
    for case in CASES[bits][row.name]:
        instruction = instruction_at(case.code, 0x1000, bits)
        assert instruction is not None
        assert instruction.len == len(case.code)
        found = row_of(instruction)
        assert found is not None
        assert found.name == row.name
        assert [other.name for other in rows_of(bits) if instruction.code in codes(other)] == [row.name]


@pytest.mark.parametrize(("bits", "row"), EVERY_ROW, ids=name_of)
def test_the_example_is_what_its_bytes_say(bits: int, row: SensitiveInstruction) -> None:
    printed = str(instruction_at(CASES[bits][row.name][0].code, 0x1000, bits)).replace(",", ", ")
    otherwise = WRITTEN_OTHERWISE if bits == 64 else WRITTEN_OTHERWISE_32
    assert printed == otherwise.get(row.example, row.example)


def test_every_row_has_cases_and_no_case_is_without_row() -> None:
    assert set(CASES[64]) == {row.name for row in ROWS}
    assert set(CASES[32]) == {row.name for row in ROWS_32}


def sample(**changes: object) -> SensitiveInstruction:
    return replace(ROW_OF_NAME["CLI"], **changes)  # type: ignore[arg-type]


BAD_TABLES: dict[str, tuple[SensitiveInstruction, ...]] = {
    "belongs to one": (sample(), sample(name="other")),
    "two rows are named": (sample(), sample(match=Codes(frozenset({int(Code.STI)})))),
    "would be dead": (sample(match=Codes(frozenset())),),
    "need Codes": (sample(match=Pattern(0xFF, 0xFA)),),
    "invalid encoding": (sample(match=Codes(frozenset({int(Code.INVALID)}))),),
    "not the trap": (sample(routes=(Route.TRAP, Route.INLINE)),),
    "a trap must always be possible": (sample(routes=()),),
    "a route twice": (sample(routes=(Route.TRAP, Route.TRAP)),),
    "lacks its example": (sample(example=""),),
    "place in the manual": (sample(manual=""),),
}


@pytest.mark.parametrize("sentence", BAD_TABLES)
def test_a_bad_table_is_refused(sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        index_codes(BAD_TABLES[sentence])


def test_the_good_table_is_not_refused() -> None:
    assert index_codes(ROWS).items() <= ROW_OF_CODE.items()
    assert index_codes((sample(),)) == {int(Code.CLI): sample()}


def test_a_row_that_names_an_encoding_twice_is_refused() -> None:
    cli = ROW_OF_NAME["CLI"]
    with pytest.raises(ValueError, match="twice"):
        make_row(
            "CLI",
            (Code.CLI, Code.CLI),
            UserBehaviour.TRAPS,
            cli.sensitivity,
            cli.operation,
            cli.routes,
            cli.example,
            cli.manual,
        )


@pytest.mark.parametrize(("bits", "mode"), [(64, keystone.KS_MODE_64), (32, keystone.KS_MODE_32)])
def test_keystone_assembles_the_examples_it_knows_to_their_rows(bits: int, mode: int) -> None:
    assembler = keystone.Ks(keystone.KS_ARCH_X86, mode)
    wrong: set[str] = set()
    known = 0
    for row in rows_of(bits):
        try:
            encoded, _ = assembler.asm(row.example, 0x1000)
        except keystone.KsError:
            continue
        instruction = instruction_at(bytes(encoded or ()), 0x1000, bits)
        found = row_of(instruction) if instruction is not None else None
        known += 1
        if found is None or found.name != row.name:
            wrong.add(row.example)
    assert known > 80
    assert wrong == set()
