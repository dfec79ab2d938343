"""The sample kernel, rewritten, does what it does on the bare machine: bit for bit, in every mode, every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from bt.image import load
from bt.session import Options
from bt.verify import Verification, run_and_compare, verify
from bt.verify.guest import Guest, of
from bt.verify.report import text
from emulator.machine import Limits

SAMPLE = Path(__file__).parents[2] / "samples" / "x86_64" / "sample.elf"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def options(guest: Guest) -> Options:
    return Options(memory=guest.memory, limits=Limits(host_seconds=280), cache=False)


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


def test_the_sample_with_fixups_is_the_reference_twice(reference: Verification) -> None:
    comparisons = [run_and_compare(reference, options(reference.guest), "inline") for _ in range(2)]
    reference.comparisons = comparisons
    assert reference.passed, text(reference)
    first, second = (comparison.pair.rewritten for comparison in comparisons)
    assert first.exits == second.exits
    assert first.console == second.console
    assert first.memory.digest() == second.memory.digest()
    assert first.events == second.events
    assert (first.blocks, first.nanoseconds) == (second.blocks, second.nanoseconds)
