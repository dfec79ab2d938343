"""Every row of the ARMv7 table is run in kernel and in user mode, and a false claim does not pass."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from emulator.engine.unicorn.arm import UnicornArmEngine
from emulator.isa.arm.proof import COMPLETES, HALTS, UNDEFINED, UNPREDICTABLE, Bench, Claim, Departure, Mode, prove
from emulator.isa.arm.proof_cases import DEPARTURES, cases_of
from emulator.isa.arm.table import ROW_OF_NAME, ROWS
from emulator.isa.proof import Verdict
from emulator.isa.sensitive import SensitiveInstruction, UserBehaviour


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    engine = UnicornArmEngine()
    yield Bench(engine)
    engine.close()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_does_in_both_modes_what_it_claims(row: SensitiveInstruction, bench: Bench) -> None:
    proof = prove(row, cases_of(row), DEPARTURES, bench)
    assert proof.verdict is not Verdict.REFUTED, proof.remarks


def test_every_departure_is_of_a_row_that_exists() -> None:
    assert {name for name, _, number in DEPARTURES if name not in ROW_OF_NAME or number} == set()


@pytest.mark.parametrize("row", [row for row in ROWS if not cases_of(row)[0].absent], ids=lambda row: row.name)
def test_what_the_cases_demand_is_what_the_row_says(row: SensitiveInstruction) -> None:
    case = cases_of(row)[0]
    kernel, user = case.kernel, case.user
    if row.at_user_level is UserBehaviour.TRAPS:
        assert user.event.what in {"exception", "system_call"}
    elif row.at_user_level is UserBehaviour.LEAKS:
        assert user.event in {COMPLETES, HALTS}
        assert kernel.event == user.event
    elif row.at_user_level is UserBehaviour.IGNORED:
        assert user.event == kernel.event == COMPLETES
        assert user.shows != kernel.shows
    else:
        assert user.event == UNPREDICTABLE or user != kernel


def test_a_wrong_claim_refutes(bench: Bench) -> None:
    (case,) = cases_of(ROW_OF_NAME["CPSID"])
    for wrong in (
        replace(case, user=Claim(COMPLETES, {"I": 1})),
        replace(case, kernel=Claim(COMPLETES, {"I": 0})),
        replace(case, user=Claim(UNDEFINED)),
    ):
        proof = prove(ROW_OF_NAME["CPSID"], (wrong,), {}, bench)
        assert proof.verdict is Verdict.REFUTED
        assert proof.remarks


def test_a_departure_that_is_not_needed_or_missing_refutes(bench: Bench) -> None:
    needless = {("MRC SCTLR", Mode.USER, 0): Departure(UNDEFINED, "needless")}
    row = ROW_OF_NAME["MRC SCTLR"]
    proof = prove(row, cases_of(row), needless, bench)
    assert proof.verdict is Verdict.REFUTED
    assert "needless" in proof.remarks[0]
    row = ROW_OF_NAME["MOVS PC"]
    assert prove(row, cases_of(row), {}, bench).verdict is Verdict.REFUTED
    assert prove(row, cases_of(row), DEPARTURES, bench).verdict is Verdict.DEPARTS


def test_the_rows_that_linux_lives_by_are_proven_and_not_excused(bench: Bench) -> None:
    names = ["CPSIE", "CPSID", "CPS", "MRS CPSR", "MSR CPSR", "LDRT", "STRT", "LDRBT", "STRHT", "SVC", "BKPT", "WFI"]
    names += ["MRC SCTLR", "MCR SCTLR", "MCR TTBR0", "MCR DACR", "MCR TLBIALL", "MCR DCCMVAU", "MCR ICIMVAU"]
    names += ["MRC TPIDRPRW", "MCR TPIDRPRW", "MCR TPIDRURO", "MRRC CNTVCT", "MRC DFSR", "MRC IFAR", "MRC MIDR"]
    names += ["VMRS FPEXC", "VMSR FPEXC", "UDF", "SETEND", "MCR CONTEXTIDR", "MCR VBAR"]
    names = [name + suffix for name in names for suffix in ("", " (T32)")]
    verdicts = {
        name: prove(ROW_OF_NAME[name], cases_of(ROW_OF_NAME[name]), DEPARTURES, bench).verdict for name in names
    }
    assert {name for name, verdict in verdicts.items() if verdict is not Verdict.PROVEN} == set()


def test_two_runs_of_a_case_show_the_same(bench: Bench) -> None:
    for row in ROWS[::5]:
        first, second = (prove(row, cases_of(row), DEPARTURES, bench) for _ in range(2))
        assert first == second
