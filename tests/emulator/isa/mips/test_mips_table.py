"""The MIPS32 table: its words belong to one row each, its examples to theirs, and running shows what it claims."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.engine.engines import MIPS_ENGINES
from emulator.isa.isas import ISAS
from emulator.isa.mips import registers as r
from emulator.isa.mips.proof import COMPLETES, Bench, Case, Claim, Departure, Mode, prove, raises
from emulator.isa.mips.proof_cases import DEPARTURES, cases_of
from emulator.isa.mips.table import ROW_OF_NAME, ROWS, TABLE, encodings
from emulator.isa.proof import Verdict
from emulator.isa.sensitive import SensitiveInstruction, UserBehaviour


@pytest.fixture(scope="module")
def benches() -> Iterator[dict[str, Bench]]:
    engines = {order: MIPS_ENGINES["unicorn"](order) for order in ("little", "big")}
    yield {order: Bench(engine) for order, engine in engines.items()}
    for engine in engines.values():
        engine.close()


def _assemble(example: str) -> int:
    if example.startswith(".inst "):
        return int(example.split()[1], 16)
    keystone = pytest.importorskip("keystone")
    assembler = keystone.Ks(keystone.KS_ARCH_MIPS, keystone.KS_MODE_MIPS32 | keystone.KS_MODE_LITTLE_ENDIAN)
    code, _count = assembler.asm(example.replace("$v0", "$2").replace("$a0", "$4").replace("$zero", "$0"))
    return int.from_bytes(bytes(code[:4]), "little")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_example_is_matched_by_its_row_alone(row: SensitiveInstruction) -> None:
    assert TABLE.row_of(_assemble(row.example)) is row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_does_in_every_mode_and_byte_order_what_it_claims(
    row: SensitiveInstruction, benches: dict[str, Bench]
) -> None:
    proof = prove(row, cases_of(row), DEPARTURES, benches)
    assert proof.verdict is not Verdict.REFUTED, proof.remarks


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_the_cases_demand_is_what_the_row_says(row: SensitiveInstruction) -> None:
    traps = any(case.user.event.what == "exception" for case in cases_of(row))
    silent = any(case.user.event == COMPLETES for case in cases_of(row))
    assert traps if row.at_user_level is UserBehaviour.TRAPS else silent


def test_a_false_claim_is_refuted(benches: dict[str, Bench]) -> None:
    row = ROW_OF_NAME["DI"]
    wrong = replace(cases_of(row)[0], user=Claim(COMPLETES))
    assert prove(row, (wrong,), {}, benches).verdict is Verdict.REFUTED


def test_a_departure_that_does_not_happen_is_refuted(benches: dict[str, Bench]) -> None:
    row = ROW_OF_NAME["DI"]
    listed = {("DI", Mode.USER, 0): Departure(Claim(COMPLETES), "none")}
    assert prove(row, cases_of(row), listed, benches).verdict is Verdict.REFUTED


def test_every_departure_is_of_a_case_that_exists() -> None:
    assert [key for key in DEPARTURES if not key[2] < len(cases_of(ROW_OF_NAME[key[0]]))] == []


def test_a_store_conditional_fails_after_a_return_from_an_exception(benches: dict[str, Bench]) -> None:
    case = cases_of(ROW_OF_NAME["SC"])[2]
    for bench in benches.values():
        assert bench.execute(case, Mode.KERNEL) == (COMPLETES, 0)
        assert bench.execute(replace(case, kernel_before=()), Mode.KERNEL) == (COMPLETES, 1)


def test_coprocessor_0_is_usable_outside_of_kernel_mode_only_with_its_bit(benches: dict[str, Bench]) -> None:
    done = Claim(COMPLETES)
    case = Case(0x4002_6000, done, done)
    for bench in benches.values():
        assert bench.execute(case, Mode.SUPERVISOR)[0] == raises(r.CPU, 0)
        assert bench.execute(case, Mode.KERNEL)[0] == COMPLETES


@given(st.integers(0, 0xFFFF_FFFF))
def test_a_word_of_the_privileged_opcodes_has_a_row(word: int) -> None:
    for opcode in (0x10, 0x2F):
        assert TABLE.row_of(opcode << 26 | word & 0x3FF_FFFF) is not None


@given(st.integers(0, 0xFFFF_FFFF))
def test_plain_arithmetic_has_no_row(word: int) -> None:
    for opcode in (8, 9, 10, 11, 12, 13, 14, 15):
        assert TABLE.row_of(opcode << 26 | word & 0x3FF_FFFF) is None


def test_the_registry_knows_the_instruction_set() -> None:
    isa = ISAS["mips32"]
    assert isa.byte_orders == ("little", "big")
    assert isa.rows == ROWS
    assert all(isa.encodings(row) == encodings(row) for row in ROWS)
    assert {context.name for context in isa.load_contexts()} >= {"a use of k0 or k1", "a store to a page table"}
