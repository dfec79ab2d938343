"""Debian's stock kernel, rewritten, does what it does on the bare machine, as far as that can be said of a Linux."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bt import guests
from bt.session import Options, read_initrd
from bt.tactics.x86 import assemble as asm
from bt.tactics.x86 import interrupt_flag
from bt.tactics.x86.template import DELTA, Template
from bt.verify import Verification, run_and_compare, verify
from bt.verify.guest import find
from bt.verify.report import text
from emulator.errors import Unavailable
from emulator.machine import Limits
from paravirt.abi import INTERRUPTS_ENABLED
from paravirt.mmu.techniques import DEFAULT, TECHNIQUES

NAME = "debian-amd64"

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def prepared() -> tuple[Verification, Options]:
    """A reference run, with processes at the same addresses in every run so that their page faults count."""
    try:
        fetched = guests.find(NAME)
    except Unavailable as error:
        pytest.skip(str(error))
    guest = find(NAME)
    chosen = Options(
        memory=guest.memory,
        initrd=read_initrd(fetched.initrd),
        command_line=f"{fetched.command_line} norandmaps",
        limits=Limits(host_seconds=280),
    )
    return verify(guest, chosen, ()), chosen


def test_a_stock_kernel_with_planted_traps_is_the_reference(prepared: tuple[Verification, Options]) -> None:
    verification, chosen = prepared
    verification.comparisons = [run_and_compare(verification, chosen, "trap")]
    assert verification.passed, text(verification)


def test_a_stock_kernel_with_fixups_is_the_reference_twice(prepared: tuple[Verification, Options]) -> None:
    verification, chosen = prepared
    comparisons = [run_and_compare(verification, chosen, "inline") for _ in range(2)]
    verification.comparisons = comparisons
    assert verification.passed, text(verification)
    assert not any(finding.result.skipped for comparison in comparisons for finding in comparison.findings)
    first, second = (comparison.pair.rewritten for comparison in comparisons)
    assert first.exits == second.exits
    assert first.console == second.console
    assert first.memory.digest() == second.memory.digest()
    assert sum(first.exits.values()) <= 40_000


def test_a_stock_kernel_is_the_reference_under_every_technique(prepared: tuple[Verification, Options]) -> None:
    verification, chosen = prepared
    others = [name for name in TECHNIQUES if name != DEFAULT]
    verification.comparisons = [
        run_and_compare(verification, replace(chosen, technique=technique), "inline") for technique in others
    ]
    assert verification.passed, text(verification)
    lazy, eager = (sum(comparison.pair.rewritten.exits.values()) for comparison in verification.comparisons[:2])
    assert lazy < 60_000
    assert eager > lazy


def test_a_wrong_function_in_pv_ops_is_caught(
    prepared: tuple[Verification, Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    verification, chosen = prepared
    wrong = Template("wrong", asm.store_constant(DELTA, INTERRUPTS_ENABLED), takes_back=True)
    monkeypatch.setattr(interrupt_flag, "disable", lambda: wrong)
    short = replace(chosen, limits=Limits(guest_seconds=2.5, host_seconds=60), cache=False)
    comparison = run_and_compare(verification, short, "inline")
    assert not comparison.passed
    # Linux says so itself, or is interrupted where it cannot stand it: when depends on where the timer ticks.
    console = comparison.pair.rewritten.console
    assert b"nterrupts were enabled" in console or b"Kernel panic" in console, console
