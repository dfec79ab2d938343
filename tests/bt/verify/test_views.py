"""What is noted of a processor has the names of its manual, for every instruction set that can be run."""

from __future__ import annotations

import pytest

from bt.image import from_bytes
from bt.session import Options
from bt.verify.observation import observe
from bt.verify.profiles import profile_for
from bt.verify.reference import FULL_PRIVILEGE, TRAP_ONLY, explain, reference_mode
from bt.verify.views import PROCESSORS
from emulator.engine.engines import ENGINES
from emulator.native import NATIVES
from tests.bt.verify.tiny_arm64 import tiny_arm64


def test_every_instruction_set_that_runs_can_be_verified() -> None:
    assert set(PROCESSORS) == set(ENGINES)


@pytest.mark.parametrize("isa", PROCESSORS)
def test_the_reference_is_the_trap_run_only_where_there_is_no_full_privilege(isa: str) -> None:
    mode = reference_mode(isa)
    assert mode == (FULL_PRIVILEGE if isa in NATIVES else TRAP_ONLY)


def test_a_trap_only_reference_is_called_so() -> None:
    assert "traps alone" in explain(TRAP_ONLY, "mips32")
    assert "mips32" in explain(TRAP_ONLY, "mips32")
    assert "full privilege" in explain(FULL_PRIVILEGE, "mips32")


def test_an_instruction_set_without_a_reference_is_held_against_its_traps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(NATIVES, "aarch64")
    assert reference_mode("aarch64") == TRAP_ONLY


@pytest.mark.parametrize("mode", ["native", "trap", "inline"])
def test_what_is_noted_of_a_run_has_the_same_names_in_every_mode(mode: str) -> None:
    image = from_bytes(tiny_arm64(), "tiny")
    run = observe(image, Options(mode=mode, memory=8 << 20, cache=False))
    row = PROCESSORS["aarch64"]
    assert row.pc in run.processor
    assert {f"X{number}" for number in range(31)} <= set(run.processor)
    assert [len(event.registers) for event in run.events] == [len(row.noted)] * 2
    assert [event.code[:4] for event in run.events] == [b"\xa1\x00\x00\xd4", b"\x20\x01\x20\xd4"]  # svc #5; brk #9
    assert {event.isa for event in run.events} == {"aarch64"}
    assert run.memory.base == 0x4000_0000
    assert profile_for(image).name == "exact"
