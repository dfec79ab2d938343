"""Reports as text for a terminal: what a scan found, what a plan does, what a rewritten image differs in.

Room: `bt/report`. Values in, lines out; nothing here reads an image. Plain tables, so that a pipe gets what a screen
gets; addresses are hexadecimal without a prefix in the first column, as objdump prints them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bt.diff import Comparison, Difference
    from bt.disassembly import Line
    from bt.plan import Plan, PlannedChange
    from bt.report.account import Account, SiteAccount
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


def account_text(account: Account) -> str:
    """What was done to an image: figures, then every patched site with its code, then the sites that were left."""
    parts = [head(account), tactic_table(account), *refusals(account), patched_text(account)]
    left = [site for site in account.sites if not site.patched]
    if left:
        rows = [(f"{s.address:0{account.width}x}", s.instruction, s.tactic, s.symbol, s.reason) for s in left]
        parts.append(table(("left as it is", "instruction", "tactic", "symbol", "reason"), rows))
    return "\n".join(parts)


def diff_text(account: Account) -> str:
    """Every patched site with its old and new code, then the sums."""
    return "\n".join([patched_text(account), tactic_table(account), *refusals(account), _others(account)])


def head(account: Account) -> str:
    """What the report is of."""
    quiet, sites = account.without_trap()
    size = ""
    if account.size and account.rewritten_size:
        grown = account.rewritten_size - account.size
        share = f"{100 * grown / account.size:+.2f} %"
        size = f"\nsize      {account.size} bytes, rewritten {account.rewritten_size} ({share})"
    share = f", {quiet} of them ({100 * quiet / sites:.1f} %) without a trap" if sites else ""
    return (
        f"image     {account.path}\n"
        f"original  SHA-256 {account.sha256}\n"
        f"set       {account.isa}, {account.order}-endian; mode {account.mode or 'none'}{size}\n"
        f"sites     {sites}{share}\n" + _others(account)
    )


def tactic_table(account: Account) -> str:
    """Sites by instruction and tactic, the most frequent tactic first."""
    columns = list(account.count("tactic"))
    tactics = Counter((site.instruction, site.tactic) for site in account.sites)
    names = sorted({name for name, _ in tactics})
    rows: list[tuple[object, ...]] = [(name, *(tactics[name, column] for column in columns)) for name in names]
    rows.append(("in all", *account.count("tactic").values()))
    return table(("instruction", *columns), rows)


def refusals(account: Account) -> list[str]:
    """Why sites have no better tactic, the most frequent reason first; empty where none was wanted."""
    refused = Counter((site.instruction, site.refused) for site in account.sites if site.refused)
    lines = [(count, name, reason) for (name, reason), count in sorted(refused.items(), key=_most_first)]
    return [table(("sites", "instruction", "why there is nothing better"), lines)] if lines else []


def _others(account: Account) -> str:
    size = sum(len(fixup.code) for fixup in account.fixups)
    lines = [f"{len(account.fixups)} fixups of {size} bytes in all"]
    reasons: Counter[str] = Counter()
    for change in account.changes:
        reasons[change.reason] += len(change.addresses)
    lines += [f"{count} x {reason}" for reason, count in reasons.items()]
    return "\n".join(lines) + "\n"


def patched_text(account: Account) -> str:
    """Every patched site with its old and new code, and its fixup."""
    return "\n".join(_site_text(account, site) for site in account.sites if site.patched)


def _site_text(account: Account, site: SiteAccount) -> str:
    doubt = ", may be data" if site.confidence == "data?" else ""
    place = f" {site.source}" if site.source else ""
    where = f"{site.address:0{account.width}x} <{site.symbol}>{place}"
    placing = f", {site.placing}" if site.placing else ""
    lines = [f"{where} {site.instruction} ({site.behaviour}{doubt}): {site.tactic}{placing}"]
    lines += _code("-", account.old_lines(site), account.width) + _code("+", account.new_lines(site), account.width)
    fixup = account.fixup_of.get(site.fixup) if site.fixup is not None else None
    if fixup is not None:
        lines += _code(" ", account.fixup_lines(fixup, site.state), account.width)
    lines.append(f"    {site.reason}")
    if fixup is not None and fixup.clobbers:
        lines.append(f"    uses up: {', '.join(fixup.clobbers)}")
    if site.refused:
        lines.append(f"    nothing better: {site.refused}")
    return "\n".join(lines) + "\n"


def _code(sign: str, lines: Sequence[Line], width: int) -> list[str]:
    return [f"  {sign} {line.address:0{width}x}  {line.bytes.hex(' '):<36}  {line.text}" for line in lines]


def comparison_text(found: Comparison) -> str:
    """What differs between two accounts."""
    how = "by address" if found.matched_by == "address" else "by symbol and order, since the originals differ"
    parts = [f"a  {found.before.path}\nb  {found.after.path}\nsites were matched {how}\n"]
    for title, sites in (("lost: only in a", found.lost), ("gained: only in b", found.gained)):
        if sites:
            rows = [(f"{s.address:x}", s.instruction, s.tactic or "-", s.section, s.symbol) for s in sites]
            parts.append(table((title, "instruction", "tactic", "section", "symbol"), rows))
    if found.changed:
        rows = [
            (f"{d.after.address:x}", d.after.instruction, _fields(d), d.after.symbol, d.after.refused or d.after.reason)
            for d in found.changed
        ]
        parts.append(table(("changed, at in b", "instruction", "from a to b", "symbol", "why, in b"), rows))
    counts = (f"{len(found.gained)} gained, {len(found.lost)} lost, {len(found.changed)} changed", f"{found.kept} kept")
    parts.append(", ".join(counts) + "\n")
    return "\n".join(parts)


def _fields(difference: Difference) -> str:
    return ", ".join(f"{name} {old or '-'} -> {new or '-'}" for name, (old, new) in difference.fields.items())
