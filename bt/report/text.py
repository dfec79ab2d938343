"""Reports as text for a terminal: what a scan found, what a plan does, what a rewritten image differs in.

Room: `bt/report`. Values in, lines out; nothing here reads an image. Plain tables, so that a pipe gets what a screen
gets; addresses are hexadecimal without a prefix in the first column, as objdump prints them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bt.diff import Diff, Line, SiteDiff
    from bt.plan import Plan, PlannedChange
    from bt.scan import Site


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under a head; numbers to the right, the last column ragged."""
    cells = [[str(cell) for cell in row] for row in rows]
    numeric = [all(row[i].isdigit() for row in cells) and bool(cells) for i in range(len(head))]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    lines = [
        "  ".join(
            c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in [list(head), *cells]
    ]
    return "\n".join(lines) + "\n"


def scan_table(sites: Sequence[Site]) -> str:
    """Sites by instruction, with the sum."""
    rows = []
    for name, here in _by_instruction(sites).items():
        row = here[0].row
        doubtful = sum(site.doubtful for site in here)
        rows.append((name, row.at_user_level.value, row.operation.name, len(here), doubtful))
    rows.sort(key=lambda row: (-row[3], row[0]))
    rows.append(("in all", "", "", len(sites), sum(site.doubtful for site in sites)))
    return table(("instruction", "at user level", "operation", "sites", "doubtful"), rows)


def _by_instruction(sites: Iterable[Site]) -> dict[str, list[Site]]:
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.row.name, []).append(site)
    return groups


def section_table(sites: Sequence[Site]) -> str:
    """Sites by section."""
    counts = Counter(site.section or "(no section)" for site in sites)
    return table(("section", "sites"), counts.items())


def site_table(sites: Sequence[Site]) -> str:
    """Every site on a line."""
    rows = [
        (f"{site.address:016x}", site.bytes.hex(" "), site.row.name, site.row.at_user_level.value, site.symbol)
        for site in sites
    ]
    return table(("address", "bytes", "instruction", "at user level", "symbol"), rows)


def plan_table(plan: Plan) -> str:
    """Sites by instruction and tactic, then why something better was refused, then the rest of the plan."""
    tactics = Counter((site.instruction, site.tactic.value) for site in plan.sites)
    names = sorted({name for name, _ in tactics})
    columns = list(plan.counts())
    rows: list[tuple[object, ...]] = [(name, *(tactics[name, column] for column in columns)) for name in names]
    rows.append(("in all", *plan.counts().values()))
    parts = [table(("instruction", *columns), rows)]
    refused = Counter((site.instruction, site.refused) for site in plan.sites if site.refused)
    if refused and plan.mode == "inline":
        lines = [(count, name, reason) for (name, reason), count in sorted(refused.items(), key=_most_first)]
        parts.append(table(("sites", "instruction", "why there is no fixup"), lines))
    parts.append(_rest(plan))
    return "\n".join(parts)


def _most_first(item: tuple[tuple[str, str], int]) -> tuple[int, tuple[str, str]]:
    return -item[1], item[0]


def _rest(plan: Plan) -> str:
    size = sum(len(fixup.code) for fixup in plan.fixups)
    lines = [f"{len(plan.fixups)} fixups of {size} bytes in all"]
    lines += [f"{count} x {reason}" for reason, count in _reasons(plan.changes).items()]
    return "\n".join(lines) + "\n"


def _reasons(changes: Iterable[PlannedChange]) -> Counter[str]:
    return Counter(change.reason for change in changes)


def diff_text(diff: Diff) -> str:
    """Every patched site with its old and new code, then the sums."""
    parts = [_site_text(site) for site in diff.sites]
    parts.append(plan_table(diff.plan))
    return "\n".join(parts)


def _site_text(diff: SiteDiff) -> str:
    site = diff.site
    doubt = ", may be data" if site.doubtful else ""
    lines = [f"{site.address:016x} <{site.symbol}> {site.instruction} ({site.behaviour}{doubt}): {site.tactic.value}"]
    lines += _code("-", diff.old) + _code("+", diff.new) + _code(" ", diff.fixup)
    lines.append(f"    {site.reason}")
    if site.refused:
        lines.append(f"    no fixup: {site.refused}")
    return "\n".join(lines) + "\n"


def _code(sign: str, lines: Sequence[Line]) -> list[str]:
    return [f"  {sign} {line.address:016x}  {line.bytes.hex(' '):<36}  {line.text}" for line in lines]
