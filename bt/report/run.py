"""Reports of a run: the exit table for people, and everything that can be compared for programs.

Room: `bt/report`. Values in, text and plain values out. Only `host`, and times that were asked for, depend on the
host or on what ran before; all else is the same whenever the same guest runs with the same input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from emulator.native import NativeCpu

if TYPE_CHECKING:
    from bt.session import Session
    from emulator.machine import Outcome

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class ExitRow:
    """One row of the exit table."""

    operation: str
    route: str
    count: int
    share: float
    """Of all exits; 0 for what came with another, and is none."""
    seconds: float
    """Host time of all of them; 0 where it was not taken."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How the command's run ended."""

    outcome: Outcome | None
    """None when an error ended it."""
    error: str
    """The error's sentence, or nothing."""
    status: int
    """Of the process."""
    seconds: float
    """Host time of the run, without loading."""
    lost: Mapping[str, Any] = field(default_factory=dict)
    """The guest's last state, where its engine crashed (`bt.lost`)."""


def exit_rows(session: Session) -> list[ExitRow]:
    """Exits by operation and route, most frequent first. A native run has kinds of exits and no routes."""
    driver = session.driver
    if not isinstance(driver, NativeCpu):
        return [ExitRow(*row) for row in driver.exits.rows()]
    total = sum(driver.exits.values()) or 1
    rows = [ExitRow(kind, "native", count, count / total, 0.0) for kind, count in driver.exits.items()]
    return sorted(rows, key=lambda row: (-row.count, row.operation))


def counters(session: Session) -> list[tuple[str, str]]:
    """Name and value of what else was counted."""
    from paravirt.xen.hypervisor import XenHypervisor

    driver = session.driver
    lines = [
        ("guest time", f"{session.machine.clock.now() / 1e9:.3f} s"),
        ("guest progress", f"{session.machine.engine.progress} blocks"),
    ]
    if isinstance(driver, NativeCpu):
        return lines
    if isinstance(driver, XenHypervisor):
        return lines + driver.counters() + (session.attached.counters() if session.attached is not None else [])
    shadow, code, translator = driver.shadow, driver.code, session.translator
    lines.append(("shadow pages", f"{shadow.fills} filled on demand, {shadow.prefilled} ahead"))
    lines.append(("code pages", f"{code.translations} translated, {code.reused} used again, {code.sites} sites"))
    if translator is not None:
        pages = f"{translator.scanned} pages scanned, {translator.cached} from the cache"
        lines.append(("scan", f"{translator.seconds:.3f} s, {pages}"))
    return lines


def print_exits(session: Session, seconds: float, *, timed: bool) -> None:
    """The exit table and the counters, on stderr."""
    from rich.console import Console
    from rich.table import Table

    rows = exit_rows(session)
    total = sum(row.count for row in rows if row.share)
    table = Table(title=f"exits of {session.image.path} ({session.options.mode})", title_justify="left")
    table.add_column("operation", overflow="fold")  # on a narrow terminal this gives way: a cut number is none
    table.add_column("route", no_wrap=True)
    for name in ("exits", "share", *(("time s", "µs each") if timed else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for row in [*rows, ExitRow("in all", "", total, 1.0, sum(row.seconds for row in rows))]:
        cells = [row.operation, row.route, str(row.count), f"{row.share:.1%}" if row.share else ""]
        if timed:
            cells += [f"{row.seconds:.3f}", f"{row.seconds / (row.count or 1) * 1e6:.2f}"]
        if row.operation == "in all":
            table.add_section()
        table.add_row(*cells)
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = 120  # a file has no width, and a cut number is none
    console.print(table)
    for name, value in [*counters(session), ("host time", f"{seconds:.3f} s")]:
        console.print(f"{name:<15} {value}", markup=False)


def as_json(session: Session, ending: Ending, console_sha256: str, console_bytes: int) -> dict[str, Any]:
    """The result as plain values; see the module's head for what may differ between two runs."""
    from paravirt.xen.hypervisor import XenHypervisor

    outcome, driver, options = ending.outcome, session.driver, session.options
    timed = options.timed
    exits = [
        {"operation": row.operation, "route": row.route, "count": row.count}
        | ({"seconds": row.seconds} if timed else {})
        for row in exit_rows(session)
    ]
    result: dict[str, Any] = {
        "format": FORMAT,
        "image": session.image.path,
        "sha256": session.image.sha256,
        "mode": options.mode,
        "memory_size": options.memory,
        "outcome": {
            "kind": outcome.kind.value if outcome is not None else "error",
            "status": outcome.status if outcome is not None else 0,
            "detail": outcome.detail if outcome is not None else ending.error,
            "exit_status": ending.status,
        },
        "guest_nanoseconds": session.machine.clock.now(),
        "progress": session.machine.engine.progress,
        "exits": exits,
        "exits_total": sum(row.count for row in exit_rows(session)),
        "console": {"bytes": console_bytes, "sha256": console_sha256},
        "memory": {"sha256": session.machine.memory.digest()},
        "board": {"sha256": session.machine.board.digest()},
    }
    if isinstance(driver, XenHypervisor):
        result["xen"] = dict(driver.counters())
    elif not isinstance(driver, NativeCpu):
        result["shadow"] = {"fills": driver.shadow.fills, "prefilled": driver.shadow.prefilled}
        code = driver.code
        result["code"] = {"translations": code.translations, "reused": code.reused, "sites": code.sites}
    if ending.lost:
        result["lost"] = dict(ending.lost)
    host: dict[str, Any] = {"seconds": round(ending.seconds, 6)}
    translator = session.translator
    if translator is not None:
        host["scan_seconds"] = round(translator.seconds, 6)
        host["pages_scanned"], host["pages_cached"] = translator.scanned, translator.cached
    result["host"] = host
    return result
