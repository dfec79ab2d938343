"""Whole guests do the same whichever way their memory is virtualised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bt.image import load
from bt.session import Options, Session
from bt.verify import run_and_compare, verify
from bt.verify.guest import find
from bt.verify.report import text
from emulator.errors import UsageError
from emulator.machine import EndKind, Limits
from paravirt.mmu.techniques import DEFAULT, TECHNIQUES

SAMPLES = Path(__file__).parents[2] / "samples"
OTHERS = [name for name in TECHNIQUES if name != DEFAULT]
FEWER = "rounds=500"
"""Of each form of self-modifying code; `test_portable_sample` and `test_sample_run` try ten thousand."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("technique", OTHERS)
def test_the_portable_sample_prints_the_same(technique: str) -> None:
    printed = bytearray()
    image = load(SAMPLES / "x86_64/portable.elf")
    options = Options(memory=64 << 20, technique=technique, command_line=FEWER)
    session = Session(image, options, printed.extend)
    try:
        outcome = session.run()
    finally:
        session.close()
    assert (outcome.kind, outcome.status) == (EndKind.DEBUG_EXIT, 0)
    assert bytes(printed) == (SAMPLES / "portable/portable.expected").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_sample_is_the_reference_in_all_that_verification_compares() -> None:
    guest = find(str(SAMPLES / "x86_64/sample.elf"))
    chosen = Options(memory=guest.memory, limits=Limits(host_seconds=400), command_line=FEWER)
    verification = verify(guest, chosen, ())
    verification.comparisons = [
        run_and_compare(verification, replace(chosen, technique=technique), "inline") for technique in OTHERS
    ]
    assert verification.passed, text(verification)


@pytest.mark.parametrize("technique", OTHERS)
@pytest.mark.parametrize("isa", ["i386", "aarch64", "armv7"])
def test_the_checks_of_memory_pass_in_every_port_whose_tables_are_shadowed(isa: str, technique: str) -> None:
    expected = (SAMPLES / "portable/portable.expected").read_bytes().splitlines()
    for group in ("paging.", "memory.", "processes."):
        printed = bytearray()
        options = Options(mode="para", memory=64 << 20, technique=technique, command_line=f"only={group}")
        session = Session(load(SAMPLES / isa / "pv.elf"), options, printed.extend)
        try:
            assert session.run().status == 0
            guard = session.driver.shadow.frames.guard  # type: ignore[union-attr]
            assert guard is None or guard.followed > 10
            assert (guard is None) == (technique == "two-stage")
        finally:
            session.close()
        passed = [line for line in printed.splitlines() if line.startswith(b"ok ")]
        assert passed == [line for line in expected if line.startswith(b"ok " + group.encode())]


@pytest.mark.parametrize(
    ("sample", "options", "sentence"),
    [
        ("x86_64/portable.elf", Options(technique="psychic"), "take one of snapshot, lazy, eager, two-stage"),
        ("x86_64/portable.elf", Options(mode="native", technique="lazy"), "no memory is virtualised"),
        ("mips32/portable.elf", Options(technique="lazy"), "mips32 guests have a way of their own"),
        ("x86_64/portable.elf", Options(technique="direct"), "for para-virtual guests"),
        ("armv7/pv.elf", Options(mode="para", technique="batched"), "tables of armv7 guests cannot be walked directly"),
    ],
)
def test_a_technique_that_cannot_be_had_is_refused_by_a_sentence(sample: str, options: Options, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Session(load(SAMPLES / sample), options, lambda _: None).close()
