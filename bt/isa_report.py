"""What the sensitive-instruction table says, for people and for programs: text, Markdown, JSON, and the verdict.

Room: `bt`. Prints rows of `emulator.isa`, and the results of running them; holds no fact of its own but
Popek and Goldberg's condition (CACM 17(7), 1974, theorem 1): a virtual machine monitor can be built if
the sensitive instructions are a subset of the privileged ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from emulator.isa.sensitive import Route, SensitiveInstruction, Sensitivity

if TYPE_CHECKING:
    from emulator.isa.isas import Isa
    from emulator.isa.proof import Proof

_KINDS = ((Sensitivity.CONTROL, "control"), (Sensitivity.BEHAVIOUR, "behaviour"))
_ROUTES = {Route.INLINE: "inline", Route.HYPERCALL: "hypercall", Route.TRAP: "trap"}


def breaking_rows(isa: Isa) -> list[SensitiveInstruction]:
    """The rows that are sensitive and not privileged: they break the condition."""
    return [row for row in isa.rows if not row.privileged]


def conditional_rows(isa: Isa) -> list[SensitiveInstruction]:
    """The rows that are privileged under a condition only."""
    return [row for row in isa.rows if row.privileged and row.condition]


def verdict(isa: Isa) -> str:
    """Popek and Goldberg's verdict in a few lines, the rows that break the condition named."""
    breaking = breaking_rows(isa)
    total = len(isa.rows)
    privileged = total - len(breaking)
    if not breaking:
        return f"All {total} sensitive instructions are privileged: Popek and Goldberg's condition holds.\n"
    by_behaviour: dict[str, list[str]] = {}
    for row in breaking:
        by_behaviour.setdefault(row.at_user_level.value, []).append(row.name)
    lines = [
        f"{total} sensitive instructions: {privileged} are privileged, {len(breaking)} are not.",
        "Popek and Goldberg's condition (every sensitive instruction is privileged) does not hold: trap-and-emulate",
        f"alone cannot virtualise {isa.title}. These do not trap in user mode; rewrite, plant or catch them:",
    ]
    lines += [f"  {behaviour}: {'; '.join(names)}" for behaviour, names in by_behaviour.items()]
    conditional = len(conditional_rows(isa))
    lines.append(f"{conditional} of the privileged ones trap under a condition only, which the hypervisor must keep.")
    lines += _context_lines(isa)
    return "\n".join(lines) + "\n"


def _context_lines(isa: Isa) -> list[str]:
    """What is sensitive by its context only, and how that is caught."""
    contexts = isa.load_contexts()
    if not contexts:
        return []
    head = "These are innocuous by encoding and sensitive where the context makes them so; no scan can find them:"
    return [head, *(f"  {one.name} ({one.instructions}), if {one.context}: {one.handled}" for one in contexts)]


def _sensitivity(row: SensitiveInstruction) -> list[str]:
    return [name for kind, name in _KINDS if kind in row.sensitivity]


def _behaviour(row: SensitiveInstruction) -> str:
    return row.at_user_level.value + (f" ({row.condition})" if row.condition else "")


def table_text(isa: Isa) -> str:
    """The table in columns, a row a line, its condition and note on lines below."""
    head = ("INSTRUCTION", "USER MODE", "SENSITIVE", "OPERATION", "ROUTES", "EXAMPLE", "MANUAL")
    cells = [
        (
            row.name,
            row.at_user_level.value,
            "+".join(_sensitivity(row)),
            row.operation.name,
            " ".join(_ROUTES[route] for route in row.routes),
            row.example,
            row.manual,
        )
        for row in isa.rows
    ]
    lines = list(_columns([head, *cells]))
    out = [lines[0]]
    for row, line in zip(isa.rows, lines[1:], strict=True):
        out.append(line)
        out += [f"    when: {row.condition}"] if row.condition else []
        out += [f"    {row.note}"] if row.note else []
    return "\n".join(out) + "\n"


def _columns(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def table_markdown(isa: Isa) -> str:
    """The table and the verdict for the documentation."""
    head = ("Instruction", "Example", "In user mode", "Sensitive", "Operation", "Routes", "Manual", "Note")
    body = (
        (
            row.name,
            f"`{row.example}`",
            _behaviour(row),
            ", ".join(_sensitivity(row)),
            f"`{row.operation.name}`",
            ", ".join(_ROUTES[route] for route in row.routes),
            row.manual,
            row.note,
        )
        for row in isa.rows
    )
    return _markdown(head, body) + "\n" + verdict(isa).replace("\n  ", "\n- ")


def _markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *body)
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def table_json(isa: Isa, proofs: Sequence[Proof] = ()) -> dict[str, Any]:
    """The table as plain data; with `proofs`, what each row did when it was run."""
    by_name = {proof.row.name: proof for proof in proofs}
    return {
        "isa": isa.name,
        "rows": [_row_json(isa, row, by_name.get(row.name)) for row in isa.rows],
        "contexts": [asdict(context) for context in isa.load_contexts()],
        "virtualisable": not breaking_rows(isa),
        "breaking": [row.name for row in breaking_rows(isa)],
    }


def _row_json(isa: Isa, row: SensitiveInstruction, proof: Proof | None) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": row.name,
        "encodings": isa.encodings(row),
        "user_mode": row.at_user_level.value,
        "privileged": row.privileged,
        "sensitivity": _sensitivity(row),
        "operation": row.operation.name,
        "routes": [_ROUTES[route] for route in row.routes],
        "planted": isa.planted(row),
        "example": row.example,
        "manual": row.manual,
        "condition": row.condition,
        "note": row.note,
    }
    if proof is not None:
        data["proof"] = {
            "verdict": proof.verdict.value,
            "kernel_mode": proof.kernel,
            "user_mode": proof.user,
            "remarks": list(proof.remarks),
        }
    return data


def prove_rows(isa: Isa, names: Sequence[str] = ()) -> list[Proof]:
    """Run the rows (all, or those named) in kernel and in user mode on the embedded engine.

    Raises UsageError for a name that no row has, and EngineMissing when the engine does not open.
    """
    from emulator.errors import UsageError

    known = {row.name for row in isa.rows}
    for name in names:
        if name not in known:
            raise UsageError(f"no row of {isa.title} is named {name!r}: `retrap isa {isa.name}` lists them")
    return list(isa.prove([row for row in isa.rows if not names or row.name in names]))


def proofs_text(proofs: Sequence[Proof]) -> str:
    """What each row did, in columns, the reasons below, and a count of the verdicts."""
    head = ("INSTRUCTION", "VERDICT", "KERNEL MODE", "USER MODE")
    cells = [(proof.row.name, proof.verdict.value, proof.kernel, proof.user) for proof in proofs]
    lines = list(_columns([head, *cells]))
    out = [lines[0]]
    for proof, line in zip(proofs, lines[1:], strict=True):
        out.append(line)
        out += [f"    {remark}" for remark in proof.remarks]
    counts: dict[str, int] = {}
    for proof in proofs:
        counts[proof.verdict.value] = counts.get(proof.verdict.value, 0) + 1
    out.append("; ".join(f"{count} {name}" for name, count in sorted(counts.items())) + f" of {len(proofs)} rows")
    return "\n".join(out) + "\n"


def refuse_refuted(proofs: Sequence[Proof]) -> None:
    """Raise VerifyFailed when a row did not do what the table says."""
    from emulator.errors import VerifyFailed

    refuted = [proof for proof in proofs if proof.verdict.name == "REFUTED"]
    if refuted:
        raise VerifyFailed(
            f"{len(refuted)} of {len(proofs)} rows did not do what the table says; first {refuted[0].row.name}: "
            f"{refuted[0].remarks[0]}"
        )
