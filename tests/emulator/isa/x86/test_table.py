"""The x86-64 table: complete against an independent list, well formed, and refused when it is not."""

import ast
import inspect
import itertools
from dataclasses import replace
from typing import Any, cast

import keystone
import pytest
from iced_x86 import Code, OpCodeInfo

from emulator.isa.operation import Operation
from emulator.isa.sensitive import Codes, Pattern, Route, SensitiveInstruction, UserBehaviour
from emulator.isa.x86.decode import instruction_at, row_of
from emulator.isa.x86.proof_cases import CASES
from emulator.isa.x86.row import row as make_row
from emulator.isa.x86.table import (
    ENTERING,
    OVERTAKEN,
    PLANTED,
    ROW_OF_CODE,
    ROW_OF_NAME,
    ROWS,
    SENSITIVE,
    index_codes,
)

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


def info_of(code: int) -> OpCodeInfo:
    return OpCodeInfo(cast("Any", code))


def codes(row: SensitiveInstruction) -> frozenset[int]:
    assert isinstance(row.match, Codes)
    return row.match.codes


def is_restricted(code: int) -> bool:
    """Whether iced-x86's own data calls an encoding of 64-bit mode privileged or bound to a level."""
    info = info_of(code)
    if not (info.mode64 and info.intel_decoder64) or info.decoder_option:
        return False
    return info.is_privileged or info.may_require_cpl0 or info.is_input_output or not (info.cpl0 and info.cpl3)


def test_every_encoding_that_the_decoder_calls_privileged_has_a_row() -> None:
    restricted = {code for code in NAMES if is_restricted(code)}
    assert len(restricted) > 100
    assert {NAMES[code] for code in restricted - SENSITIVE} == set()


def test_every_encoding_of_a_rows_mnemonic_is_in_the_table_unless_it_touches_no_privileged_state() -> None:
    innocuous_forms = ("MOV", "PUSH", "POP", "CALL", "JMP")
    mnemonics = {info_of(code).mnemonic for code in SENSITIVE}
    strays = {
        NAMES[code]
        for code in NAMES
        if info_of(code).mode64
        and info_of(code).mnemonic in mnemonics
        and not info_of(code).decoder_option
        and code not in SENSITIVE
    }
    assert {name for name in strays if not name.startswith(innocuous_forms)} == set()
    privileged_operands = ("Sreg", "FS", "GS", "m16:")
    forms = [info_of(getattr(Code, name)).instruction_string for name in strays]
    assert [form for form in forms if any(operand in form for operand in privileged_operands)] == []


def test_every_row_is_an_instruction_of_64_bit_mode() -> None:
    assert {NAMES[code] for code in SENSITIVE if not info_of(code).mode64} == set()


def test_robin_and_irvines_instructions_are_all_there_and_not_privileged() -> None:
    names = (
        *("SGDT", "SIDT", "SLDT", "STR", "SMSW", "PUSHF", "POPF", "LAR", "LSL", "VERR", "VERW"),
        *("MOV r, Sreg", "MOV Sreg, r", "PUSH FS, PUSH GS", "POP FS, POP GS"),
        *("far CALL", "far JMP", "far RET", "INT n", "INT3"),
    )
    assert [name for name in names if ROW_OF_NAME[name].privileged] == []


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


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_example_is_matched_by_its_row_alone(row: SensitiveInstruction) -> None:
    for case in CASES[row.name]:
        instruction = instruction_at(case.code, 0x1000)
        assert instruction is not None
        assert instruction.len == len(case.code)
        assert row_of(instruction) is row
        assert [other.name for other in ROWS if instruction.code in codes(other)] == [row.name]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_example_is_what_its_bytes_say(row: SensitiveInstruction) -> None:
    printed = str(instruction_at(CASES[row.name][0].code, 0x1000)).replace(",", ", ")
    assert printed == WRITTEN_OTHERWISE.get(row.example, row.example)


def test_every_row_has_cases_and_no_case_is_without_row() -> None:
    assert set(CASES) == set(ROW_OF_NAME)


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
    assert index_codes(ROWS) == ROW_OF_CODE
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


def test_keystone_assembles_the_examples_it_knows_to_their_rows() -> None:
    assembler = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
    wrong: set[str] = set()
    known = 0
    for row in ROWS:
        try:
            encoded, _ = assembler.asm(row.example, 0x1000)
        except keystone.KsError:
            continue
        instruction = instruction_at(bytes(encoded or ()), 0x1000)
        known += 1
        if instruction is None or row_of(instruction) is not row:
            wrong.add(row.example)
    assert known > 80
    assert wrong == set()
