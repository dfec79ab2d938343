"""The documentation of Xen's interface, printed from the table by which calls are dispatched.

Room: `bt`. `bt.docs` writes the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from paravirt.xen.table import HYPERCALLS, Offer, Operation

Table = Callable[[Sequence[str], Iterable[Sequence[str]]], str]
_HEAD = ("Number", "Call", "Offered", "What is left out, or why", "Returns", "Xen offers it to")


def xen_calls(table: Table) -> str:
    """The page, by a function that prints a table."""
    offered = sum(row.offer is Offer.OFFERED for row in HYPERCALLS)
    partly = sum(row.offer is Offer.PARTLY for row in HYPERCALLS)
    text = (
        "# Xen's hypercalls\n\n"
        "Every call of Xen's public headers, by the table that dispatches them (`paravirt/xen/table.py`): "
        f"{offered} are offered, {partly} in part, {len(HYPERCALLS) - offered - partly} refused. "
        "[Xen guests](../xen.md) says how they are done.\n\n" + table(_HEAD, map(_cells, HYPERCALLS))
    )
    for call in HYPERCALLS:
        if call.operations:
            text += f"\n## Operations of {call.name}\n\n" + table(_HEAD, map(_cells, call.operations))
    return text


def _cells(row: Operation) -> tuple[str, ...]:
    returns = f"-{row.errno.name}" if row.offer is Offer.REFUSED else ""
    return str(row.number), f"`{row.name}`", row.offer.value, row.why, returns, row.in_xen.value
