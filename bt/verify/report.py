"""A verification as text and as JSON: what was compared, what was left out and why, and the first divergence.

Room: `bt/verify`. Values in, lines out. Tables are plain text, so that a pipe gets what a screen gets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bt.report.text import table
from bt.verify.engines import STEADY
from bt.verify.reference import FULL_PRIVILEGE, explain

if TYPE_CHECKING:
    from bt.console_compare import Comparison as ConsoleComparison
    from bt.verify import Verification
    from bt.verify.engines import Operations
    from bt.verify.observation import Observation
    from bt.verify.rules import Comparison, Divergence, Finding, Profile, Side

FORMAT = 1
"""Version of the JSON."""
_PER_LINE = 4
_MOST_LINES = 12
"""Differing lines of a console that are shown."""


def text(verification: Verification) -> str:
    """Everything about a verification."""
    return "\n".join(_lines(verification)) + "\n"


def _lines(verification: Verification) -> Iterator[str]:
    isa = verification.guest.image.isa.name
    yield f"{verification.guest.name}: the reference {summary(verification.reference)}"
    yield f"The reference ran {explain(verification.reference.mode, isa)}."
    for comparison in verification.comparisons:
        yield ""
        yield from _comparison_lines(comparison)
    for operations in verification.operations:
        yield ""
        yield from _operation_lines(operations)
    for mode, console in verification.consoles:
        yield ""
        yield from _console_lines(mode, console)
    yield from verification.blamed
    yield from (f"note: {note}" for note in verification.notes)
    if verification.comparisons:
        yield ""
        yield from _left_out(verification.comparisons[0].profile)
    yield ""
    yield "verified: the runs agree" if verification.passed else "FAILED: the runs do not agree"


def summary(run: Observation) -> str:
    """How a run ended and what it took, in one clause."""
    return (
        f"ended by {run.outcome.kind.value}, status {run.outcome.status}, after {run.blocks} blocks, "
        f"{run.nanoseconds / 1e9:.3f} s of guest time, {run.left} exits"
    )


def _comparison_lines(comparison: Comparison) -> Iterator[str]:
    rewritten = comparison.pair.rewritten
    yield f"{comparison.name}: {summary(rewritten)}"
    rows = [(_verdict(finding), finding.rule.name, _compared(finding)) for finding in comparison.findings]
    yield from table(("", "compared", "how much"), rows).rstrip("\n").split("\n")
    first = comparison.first
    if first is not None and first.result.divergence is not None:
        yield ""
        yield f"The first divergence, in {first.rule.name}: {first.result.divergence.what}"
        yield from _divergence_lines(first.result.divergence)
        for finding in comparison.findings:
            if finding is not first and finding.result.divergence is not None:
                yield f"also in {finding.rule.name}: {finding.result.divergence.what}"


def _verdict(finding: Finding) -> str:
    if finding.result.skipped:
        return "skipped"
    return "same" if finding.passed else "DIFFERS"


def _compared(finding: Finding) -> str:
    return finding.result.skipped or finding.result.compared


def _divergence_lines(divergence: Divergence) -> Iterator[str]:
    for name, side in (("reference", divergence.reference), ("rewritten", divergence.rewritten)):
        yield f"  {name}: " + (side.text if side is not None else "nothing")
        if side is None:
            continue
        if side.address is not None:
            yield f"    at {side.address:#x} <{side.symbol}>"
        yield from (f"    {line}" for line in side.disassembly)
        yield from _register_lines(side, divergence)


def _register_lines(side: Side, divergence: Divergence) -> Iterator[str]:
    """Four registers a line; those that differ between the runs have a star."""
    other = divergence.rewritten if side is divergence.reference else divergence.reference
    cells = [
        f"{name:>6} {value:016x}" + ("*" if other and other.registers.get(name, value) != value else " ")
        for name, value in side.registers.items()
    ]
    for at in range(0, len(cells), _PER_LINE):
        yield "    " + " ".join(cells[at : at + _PER_LINE]).rstrip()


def _operation_lines(operations: Operations) -> Iterator[str]:
    verdict = "same" if operations.passed else "DIFFERS"
    yield f"{operations.mode}, what was done on {' and '.join(operations.engines)}: {verdict}"
    rows = [(_steadiness(name, left, right), name, str(left), str(right)) for name, left, right in operations.counts]
    yield from table(("", "operation", *operations.engines), rows).rstrip("\n").split("\n")


def _steadiness(name: str, left: int, right: int) -> str:
    if name not in STEADY:
        return "varies"
    return "same" if left == right else "DIFFERS"


def _console_lines(mode: str, console: ConsoleComparison) -> Iterator[str]:
    verdict = "same" if console.passed else "DIFFERS"
    excused = len(console.differences) - len(console.unexplained)
    yield f"{mode}, beside QEMU: {verdict}; {console.equal} console lines are equal, {excused} differ by a rule"
    for difference in console.unexplained[:_MOST_LINES]:
        yield f"  {difference.side.value}, line {difference.number}: {difference.line}"


def _left_out(profile: Profile) -> Iterator[str]:
    yield f"Compared as {profile.summary}. What may differ, and why:"
    yield from (f"  {rule.name}: {rule.leaves_out}; {rule.why}" for rule in profile.rules if rule.leaves_out)
    yield "Not compared:"
    yield from (f"  {what}: {why}" for what, why in profile.not_compared)


def as_json(verification: Verification) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "format": FORMAT,
        "guest": verification.guest.name,
        "sha256": verification.guest.image.sha256,
        "passed": verification.passed,
        "isa": verification.guest.image.isa.name,
        "reference": {
            **_run_json(verification.reference),
            "full_privilege": verification.reference.mode == FULL_PRIVILEGE,
            "ran": explain(verification.reference.mode, verification.guest.image.isa.name),
        },
        "runs": [_comparison_json(comparison) for comparison in verification.comparisons],
        "operations": [
            {
                "mode": one.mode,
                "engines": list(one.engines),
                "passed": one.passed,
                "counts": [{"operation": name, "exits": [left, right]} for name, left, right in one.counts],
                "differing": list(one.differing),
            }
            for one in verification.operations
        ],
        "qemu": [_console_json(mode, console) for mode, console in verification.consoles],
        "blamed": list(verification.blamed),
        "notes": list(verification.notes),
    }


def _run_json(run: Observation) -> dict[str, Any]:
    from hashlib import sha256

    return {
        "mode": run.mode,
        "engine": run.engine,
        "outcome": run.outcome.kind.value,
        "status": run.outcome.status,
        "blocks": run.blocks,
        "nanoseconds": run.nanoseconds,
        "events": len(run.events),
        "device_writes": len(run.writes),
        "console_sha256": sha256(run.console).hexdigest(),
        "memory_sha256": run.memory.digest(),
        "exits": run.exits,
        "exits_in_all": run.left,
    }


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    first = comparison.first
    return {
        **_run_json(comparison.pair.rewritten),
        "passed": comparison.passed,
        "rules": comparison.profile.name,
        "findings": [
            {
                "rule": finding.rule.name,
                "verdict": _verdict(finding).lower(),
                "compared": finding.result.compared,
                "skipped": finding.result.skipped,
                "left_out": finding.rule.leaves_out,
                "why": finding.rule.why,
                "divergence": _divergence_json(finding.result.divergence),
            }
            for finding in comparison.findings
        ],
        "first": first.rule.name if first is not None else None,
        "not_compared": [{"what": what, "why": why} for what, why in comparison.profile.not_compared],
    }


def _divergence_json(divergence: Divergence | None) -> dict[str, Any] | None:
    if divergence is None:
        return None
    return {
        "what": divergence.what,
        "blocks": divergence.progress,
        "reference": _side_json(divergence.reference),
        "rewritten": _side_json(divergence.rewritten),
    }


def _side_json(side: Side | None) -> dict[str, Any] | None:
    if side is None:
        return None
    return {
        "text": side.text,
        "address": None if side.address is None else f"{side.address:#x}",
        "symbol": side.symbol,
        "disassembly": list(side.disassembly),
        "registers": {name: f"{value:#x}" for name, value in side.registers.items()},
    }


def _console_json(mode: str, console: ConsoleComparison) -> dict[str, Any]:
    return {
        "mode": mode,
        "passed": console.passed,
        "equal": console.equal,
        "unexplained": [
            {"side": difference.side.value, "number": difference.number, "line": difference.line}
            for difference in console.unexplained
        ],
    }
