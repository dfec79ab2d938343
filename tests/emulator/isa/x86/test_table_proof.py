"""Every row of the x86-64 table is run in kernel and in user mode, and a false claim does not pass."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from emulator.engine.unicorn.engine import UnicornEngine
from emulator.isa.proof import Verdict
from emulator.isa.sensitive import Codes, SensitiveInstruction, UserBehaviour
from emulator.isa.x86.proof import ARRIVES, COMPLETES, Bench, Case, Claim, Departure, Mode, exception, prove
from emulator.isa.x86.proof_cases import CASES, DEPARTURES
from emulator.isa.x86.table import ENTERING, ROW_OF_NAME, ROWS


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    engine = UnicornEngine()
    yield Bench(engine)
    engine.close()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_does_in_both_modes_what_it_claims(row: SensitiveInstruction, bench: Bench) -> None:
    proof = prove(row, CASES[row.name], DEPARTURES, bench)
    assert proof.verdict is not Verdict.REFUTED, proof.remarks


def test_every_departure_is_of_a_case_that_exists() -> None:
    strays = {key for key in DEPARTURES if not key[2] < len(CASES.get(key[0], ()))}
    assert strays == set()


def first_case(name: str) -> Case:
    return CASES[name][0]


@pytest.mark.parametrize("row", [row for row in ROWS if not first_case(row.name).absent], ids=lambda row: row.name)
def test_what_the_cases_demand_is_what_the_row_says(row: SensitiveInstruction) -> None:
    cases = CASES[row.name]
    user, kernel = cases[0].user, cases[0].kernel
    assert isinstance(row.match, Codes)
    if row.match.codes <= ENTERING:
        assert user.event.what in {"software_interrupt", "system_call", "exception"}
    elif row.at_user_level is UserBehaviour.TRAPS:
        assert user.event.what == "exception"
        assert kernel.event.what != "exception" or row.name == "RSM"
    elif row.at_user_level is UserBehaviour.LEAKS:
        assert user.event == COMPLETES
        assert user.shows or row.name == "CPUID"
    elif row.at_user_level is UserBehaviour.IGNORED:
        assert user.event in {COMPLETES, ARRIVES}
        assert user.event == kernel.event
        assert user.shows != kernel.shows
    else:
        assert any(case.user != case.kernel for case in cases)


def test_a_wrong_claim_refutes(bench: Bench) -> None:
    (case,) = CASES["POPF"]
    for wrong in (
        replace(case, user=Claim(COMPLETES, {"IF": 0})),
        replace(case, kernel=Claim(COMPLETES, {"IF": 1})),
        replace(case, user=Claim(exception(13))),
    ):
        proof = prove(ROW_OF_NAME["POPF"], (wrong,), {}, bench)
        assert proof.verdict is Verdict.REFUTED
        assert proof.remarks


def test_a_departure_that_is_not_needed_refutes(bench: Bench) -> None:
    departures = {("CLI", Mode.USER, 0): Departure(exception(13), "needless")}
    proof = prove(ROW_OF_NAME["CLI"], CASES["CLI"], departures, bench)
    assert proof.verdict is Verdict.REFUTED
    assert "needless" in proof.remarks[0]


def test_a_departure_that_is_missing_or_another_one_refutes(bench: Bench) -> None:
    row, cases = ROW_OF_NAME["INT3"], CASES["INT3"]
    assert prove(row, cases, {}, bench).verdict is Verdict.REFUTED
    other = {("INT3", Mode.USER, 0): Departure(exception(6), "otherwise")}
    assert prove(row, cases, other, bench).verdict is Verdict.REFUTED
    assert prove(row, cases, DEPARTURES, bench).verdict is Verdict.DEPARTS


def test_an_extension_that_the_processor_has_is_not_called_absent(bench: Bench) -> None:
    case = replace(CASES["CLI"][0], kernel=Claim(exception(6)), user=Claim(exception(6)), absent=True)
    assert prove(ROW_OF_NAME["CLI"], (case,), {}, bench).verdict is Verdict.REFUTED


def test_the_base_architectures_classic_rows_are_proven_and_not_excused(bench: Bench) -> None:
    classic = [
        *("PUSHF", "POPF", "IRET", "SGDT", "SIDT", "SLDT", "STR", "SMSW", "LAR", "LSL", "VERR", "VERW"),
        *("CLI", "STI", "HLT", "LMSW", "CLTS", "RDMSR", "WRMSR", "LGDT", "LIDT", "LLDT", "LTR", "SWAPGS"),
        *("SYSRET", "SYSEXIT", "INVLPG", "INVD", "WBINVD", "XGETBV", "RDFSBASE", "WRGSBASE"),
    ]
    classic += ["MOV r, Sreg", "MOV Sreg, r", "MOV r, CR", "MOV CR, r", "far CALL", "far JMP", "far RET"]
    verdicts = {name: prove(ROW_OF_NAME[name], CASES[name], DEPARTURES, bench).verdict for name in classic}
    assert {name for name, verdict in verdicts.items() if verdict is not Verdict.PROVEN} == set()


def test_two_runs_of_a_case_show_the_same(bench: Bench) -> None:
    for row in ROWS:
        first, second = (prove(row, CASES[row.name], DEPARTURES, bench) for _ in range(2))
        assert first == second
