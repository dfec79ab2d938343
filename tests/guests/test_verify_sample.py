"""The sample kernel, rewritten, does what it does on the bare machine: bit for bit, in every mode, every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bt.image import load
from bt.session import Options
from bt.verify import Verification, run_and_compare, verify
from bt.verify.guest import Guest, of
from bt.verify.observation import observe
from bt.verify.report import text
from emulator.machine import Limits

SAMPLE = Path(__file__).parents[2] / "samples" / "x86_64" / "sample.elf"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def options(guest: Guest) -> Options:
    return Options(memory=guest.memory, limits=Limits(host_seconds=280), cache=False, command_line="rounds=500")


@pytest.fixture(scope="module")
def reference() -> Verification:
    guest = of(load(SAMPLE))
    assert guest.volatile
    result = verify(guest, options(guest), ())
    assert result.reference.outcome.status == 0
    assert b" 0 failed" in result.reference.console
    return result


def test_the_sample_with_planted_traps_is_the_reference(reference: Verification) -> None:
    reference.comparisons = [run_and_compare(reference, options(reference.guest), "trap")]
    assert reference.passed, text(reference)


def test_the_sample_with_fixups_is_the_reference(reference: Verification) -> None:
    reference.comparisons = [run_and_compare(reference, options(reference.guest), "inline")]
    assert reference.passed, text(reference)


@pytest.mark.parametrize("mode", ["native", "trap", "inline"])
def test_preempted_processes_run_twice_are_the_same_to_the_last_exit(mode: str) -> None:
    guest = of(load(SAMPLE))
    chosen = replace(options(guest), mode=mode, command_line="only=processes")
    first, second = (observe(guest.image, chosen) for _ in range(2))
    assert first.of("interrupt")
    assert first.exits == second.exits
    assert first.console == second.console
    assert first.events == second.events
    assert first.writes == second.writes
    assert first.memory.digest() == second.memory.digest()
    assert (first.blocks, first.nanoseconds) == (second.blocks, second.nanoseconds)
