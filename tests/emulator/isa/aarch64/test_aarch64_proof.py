"""The AArch64 table, run: every row does at EL1 and at EL0 what it says, and no listed departure is without need."""

from dataclasses import replace

import pytest

from emulator.engine.engines import open_unicorn_aarch64
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.proof import COMPLETES, Bench, Case, Claim, Departure, Mode, exception, prove, prove_rows
from emulator.isa.aarch64.proof_cases import DEPARTURES, cases_of
from emulator.isa.aarch64.table import ROW_OF_NAME, ROWS
from emulator.isa.proof import Verdict
from emulator.isa.sensitive import UserBehaviour


@pytest.fixture
def bench() -> Bench:
    return Bench(open_unicorn_aarch64())


def test_every_row_is_proven_live() -> None:
    proofs = list(prove_rows(ROWS))
    assert [(proof.row.name, proof.remarks) for proof in proofs if proof.verdict is Verdict.REFUTED] == []
    assert len(proofs) == len(ROWS)
    assert sum(proof.verdict is Verdict.PROVEN for proof in proofs) > 200


def test_every_departure_belongs_to_a_row_and_a_case() -> None:
    for name, _, number in DEPARTURES:
        assert number < len(cases_of(ROW_OF_NAME[name]))


def test_a_claim_follows_what_the_row_says_of_user_mode() -> None:
    for row in ROWS:
        traps = cases_of(row)[0].user.event != COMPLETES
        assert traps == (row.at_user_level is UserBehaviour.TRAPS or "else undefined" in row.note), row.name


def test_a_wrong_claim_is_refuted(bench: Bench) -> None:
    row = ROW_OF_NAME["ERET"]
    wrong = replace(cases_of(row)[0], user=Claim(COMPLETES))
    proof = prove(row, [wrong], {}, bench)
    assert proof.verdict is Verdict.REFUTED
    assert proof.remarks == ("EL0: saw undefined instead of completes",)


def test_a_departure_without_need_is_refuted(bench: Bench) -> None:
    row = ROW_OF_NAME["ERET"]
    listed = {("ERET", Mode.USER, 0): Departure(exception(x.SVC), "none")}
    assert prove(row, cases_of(row), listed, bench).verdict is Verdict.REFUTED


def test_a_store_that_ldtr_would_be_checked_for_reaches_kernel_memory_by_a_plain_load(bench: Bench) -> None:
    ldr = Case(
        0xF940_0020, Claim(COMPLETES, {"X0": 0x1122_3344_5566_7788}), Claim(exception(x.DATA_LOWER)), {1: 0x4000_6000}
    )
    assert prove(ROW_OF_NAME["LDTR"], [ldr], {}, bench).verdict is Verdict.PROVEN
