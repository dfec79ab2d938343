"""Every row of the x86 tables is run in kernel and in user mode, and a false claim does not pass."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from emulator.engine.unicorn.engine import UnicornEngine
from emulator.isa.proof import Verdict
from emulator.isa.sensitive import Codes, SensitiveInstruction, UserBehaviour
from emulator.isa.x86 import proof_cases32
from emulator.isa.x86.proof import ARRIVES, COMPLETES, Bench, Case, Claim, Departure, Mode, exception, prove
from emulator.isa.x86.proof_cases import CASES, DEPARTURES
from emulator.isa.x86.rows_unprivileged import ROBIN_AND_IRVINE
from emulator.isa.x86.table import ENTERING, ROW_OF_NAME, ROWS, ROWS_32


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    engine = UnicornEngine()
    yield Bench(engine)
    engine.close()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_does_in_both_modes_what_it_claims(row: SensitiveInstruction, bench: Bench) -> None:
    proof = prove(row, CASES[row.name], DEPARTURES, bench)
    assert proof.verdict is not Verdict.REFUTED, proof.remarks


@pytest.fixture(scope="module")
def narrow_bench() -> Iterator[Bench]:
    engine = UnicornEngine()
    yield Bench(engine, 32)
    engine.close()


@pytest.mark.parametrize("row", ROWS_32, ids=lambda row: row.name)
def test_a_row_does_in_both_modes_of_32_bits_what_it_claims(row: SensitiveInstruction, narrow_bench: Bench) -> None:
    proof = prove(row, proof_cases32.CASES[row.name], proof_cases32.DEPARTURES, narrow_bench)
    assert proof.verdict is not Verdict.REFUTED, proof.remarks


def test_every_departure_is_of_a_case_that_exists() -> None:
    for cases, departures in ((CASES, DEPARTURES), (proof_cases32.CASES, proof_cases32.DEPARTURES)):
        assert {key for key in departures if not key[2] < len(cases.get(key[0], ()))} == set()


LIVE = [(CASES, row) for row in ROWS if not CASES[row.name][0].absent]
LIVE += [(proof_cases32.CASES, row) for row in ROWS_32 if not proof_cases32.CASES[row.name][0].absent]
UNDEFINED_EVERYWHERE = {"RSM", "SYSRET"}
"""Outside system-management mode, and on Intel's processors outside 64-bit mode."""


@pytest.mark.parametrize(("all_cases", "row"), LIVE, ids=lambda value: getattr(value, "name", ""))
def test_what_the_cases_demand_is_what_the_row_says(
    all_cases: dict[str, tuple[Case, ...]], row: SensitiveInstruction
) -> None:
    cases = all_cases[row.name]
    user, kernel = cases[0].user, cases[0].kernel
    assert isinstance(row.match, Codes)
    if row.match.codes <= ENTERING:
        assert user.event.what in {"software_interrupt", "system_call", "exception"}
    elif row.at_user_level is UserBehaviour.TRAPS:
        assert user.event.what == "exception"
        assert kernel.event.what != "exception" or row.name in UNDEFINED_EVERYWHERE
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


def test_the_classic_rows_of_32_bits_are_proven_and_not_excused(narrow_bench: Bench) -> None:
    classic = [name for group in ROBIN_AND_IRVINE.values() for name in group]
    classic += ["CLI", "STI", "HLT", "LMSW", "CLTS", "RDMSR", "WRMSR", "LGDT", "LIDT", "LLDT", "LTR", "SYSEXIT"]
    classic += ["IRET", "INVLPG", "INVD", "WBINVD", "MOV r, CR", "MOV CR, r", "LDS", "LES", "LSS", "LFS", "LGS"]
    verdicts = {
        name: prove(ROW_OF_NAME[name], proof_cases32.CASES[name], proof_cases32.DEPARTURES, narrow_bench).verdict
        for name in classic
    }
    reported = {"INT n", "INT3", "INTO"}
    assert {name for name, verdict in verdicts.items() if verdict is not Verdict.PROVEN} == reported


def test_one_engine_goes_from_64_bits_to_32_and_back() -> None:
    engine = UnicornEngine()
    bench = Bench(engine)
    try:
        for bits, cases in ((64, CASES), (32, proof_cases32.CASES)) * 2:
            bench.bits = bits
            for mode in Mode:
                found = bench.execute(cases["MOV r, Sreg"][0], mode)
                claim = cases["MOV r, Sreg"][0].kernel if mode is Mode.KERNEL else cases["MOV r, Sreg"][0].user
                assert (found.event, found.value("RAX")) == (claim.event, claim.shows["RAX"])
    finally:
        engine.close()


def test_two_runs_of_a_case_show_the_same(bench: Bench) -> None:
    for row in ROWS:
        first, second = (prove(row, CASES[row.name], DEPARTURES, bench) for _ in range(2))
        assert first == second
