"""The documentation's tables, printed from the code that they describe.

Room: the house's own upkeep; nothing imports it. `python -m bt.docs` writes `docs/generated/`, with `--check` it
only says whether the files there are what the code says. A page is a row of `PAGES`: a file name and a function.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, IntEnum
from pathlib import Path
from types import ModuleType
from typing import Final

DIRECTORY = Path(__file__).parent.parent / "docs" / "generated"
INCLUDES = Path(__file__).parent.parent / "samples" / "include"
"""What guests include of the para-virtual interface."""

NOTICE = "<!-- Printed from the code by `python -m bt.docs`; changes here are lost. -->\n\n"


_NUMBER: Final = re.compile(r"[-+]?\d[\d.,]*( ?%)?")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [[*row] for row in rows]
    numbers = [all(_NUMBER.fullmatch(row[at]) for row in cells if row[at]) for at in range(len(head))]
    lines = [head, ["---:" if right and cells else "---" for right in numbers], *cells]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def exit_statuses() -> str:
    """What each exit status of the command means."""
    from emulator.errors import INTERNAL_ERROR, INTERRUPTED, KINDS, TERMINATED

    by_status: dict[int, list[str]] = {0: ["all went well (`run`: the guest shut down and reported success)"]}
    for kind in KINDS:
        by_status.setdefault(kind.exit_status, []).append(kind.meaning)
    by_status[INTERNAL_ERROR] = ["a mistake in retrap itself; the one case with a traceback"]
    by_status[INTERRUPTED] = ["interrupted from the terminal (Ctrl-C)"]
    by_status[TERMINATED] = ["ended by SIGTERM"]
    rows = [(str(status), "; ".join(meanings)) for status, meanings in sorted(by_status.items())]
    return "# Exit statuses\n\n" + _table(("Status", "Meaning"), rows)


def sensitive_instructions(name: str) -> str:
    """An instruction set's table of sensitive instructions, a row each."""
    from emulator.isa.isas import ISAS
    from emulator.isa.sensitive import SensitiveInstruction, Sensitivity

    isa = ISAS[name]

    def cells(row: SensitiveInstruction) -> Sequence[str]:
        kinds = [kind.name or "" for kind in Sensitivity if kind in row.sensitivity]
        return (
            row.name,
            f"`{row.example}`",
            row.at_user_level.value + (f" ({row.condition})" if row.condition else ""),
            ", ".join(kind.lower() for kind in kinds),
            f"`{row.operation.name}`",
            ", ".join(route.value for route in row.routes),
            row.manual,
            row.note,
        )

    head = ("Instruction", "Example", "At user level", "Sensitive", "Operation", "Routes", "Manual", "Note")
    return (
        f"# Sensitive instructions of {isa.title}\n\n"
        f"{len(isa.rows)} rows. *At user level* is what the instruction does in user mode: it traps, it is ignored, it "
        "leaks privileged state, or its effect differs. *Routes* are the ways to its handler, the cheapest first. "
        "Every row is run in kernel and in user mode by the tests.\n\n" + _table(head, map(cells, isa.rows))
    )


def rewriting() -> str:
    """The words of a plan: tactics, placings, confidence; and the fields of the match language."""
    from bt.match import FIELDS
    from bt.scan import Confidence
    from bt.tactics.tactics import Placing, Tactic

    parts = ["# The words of rewriting\n"]
    for title, kind in (("Tactics, best first", Tactic), ("Ways to a fixup, best first", Placing)):
        parts.append(f"## {title}\n\n" + _table(("Word", "Meaning"), documented_members(kind)))
    parts.append("## Confidence\n\n" + _table(("Word", "Meaning"), documented_members(Confidence)))
    rows = [(f"`{name}`", field.meaning, ", ".join(f"`{v}`" for v in field.values)) for name, field in FIELDS.items()]
    parts.append("## Fields of the match language\n\n" + _table(("Field", "What it is", "Values"), rows))
    return "\n".join(parts)


def documented_members(kind: type[Enum]) -> list[tuple[str, str]]:
    """Value and docstring of an enumeration's members, in their order."""
    tree = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(tree, ast.ClassDef)
    rows = []
    for statement, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        name = _constant_name(statement)
        if name is None or name not in kind.__members__:
            continue
        text = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = " ".join(str(following.value.value).split())
        rows.append((str(kind[name].value) or "(none)", text))
    return rows


def engine_quirks() -> str:
    """Where the embedded CPU departs from the architecture."""
    from emulator.engine.unicorn.aarch64_quirks import QUIRKS as AARCH64_QUIRKS
    from emulator.engine.unicorn.arm_quirks import ARM_QUIRKS
    from emulator.engine.unicorn.mips_quirks import MIPS_QUIRKS
    from emulator.engine.unicorn.quirks import QUIRKS
    from emulator.engine.unicorn.upstream import ISSUE, NAMES, SEARCHED

    rows = [
        (
            quirk.name,
            quirk.happens,
            quirk.architecture,
            quirk.mended,
            "; ".join(f"[{number}]({ISSUE.format(number)}) {NAMES[number]}" for number in quirk.upstream)
            or f"none found; searched for: {quirk.searched}",
            f"`{quirk.test}`",
        )
        for quirk in (*QUIRKS, *MIPS_QUIRKS, *AARCH64_QUIRKS, *ARM_QUIRKS)
    ]
    head = ("Quirk", "Unicorn 2.1.4", "The architecture", "Mended in", "Upstream", "Test")
    return (
        "# Where the embedded engine departs from the architecture\n\n"
        "Every row is shown raw by its test, which fails when upstream mends it: then the row and its workaround go. "
        "*Upstream* are issues and pull requests of unicorn-engine/unicorn about it, or what was searched for where "
        f"none was found ({SEARCHED}).\n\n" + _table(head, rows)
    )


def guest_interface() -> str:
    """The addresses and offsets that fixups and hypervisor share."""
    module = importlib.import_module("paravirt.abi")
    rows = [(f"`{name}`", f"`{_number(value)}`", text) for name, value, text in documented_constants(module)]
    lines = (inspect.getdoc(module) or "").splitlines()
    return (
        "# The interface between guest-side code and the hypervisor\n\n"
        + "\n".join(lines[2:]).strip()
        + "\n\n"
        + _table(("Name", "Value", "Meaning"), rows)
    )


def para_virtual_interface() -> str:
    """The calls, traps, registers and frames of para-virtual guests."""
    from paravirt.abi import calls, guests, printing

    calls_ = [
        (str(int(row.call)), f"`{row.call.name}`", ", ".join(row.arguments), row.meaning, row.result)
        for row in calls.CALLS
    ]
    conventions = [
        (
            isa,
            f"`{one.call_entry:#x}`",
            f"`{one.return_entry:#x}`",
            one.number,
            " ".join(one.arguments),
            one.result,
            one.handler,
            one.link or "on the stack",
            str(one.frame_bytes),
        )
        for isa, one in guests.CONVENTIONS.items()
    ]
    head = ("Set", "Call", "Return", "Number", "Arguments", "Result", "Frame", "Return address", "Bytes of a frame")
    shared = [
        (isa, *(f"`{value:#x}`" for name, value, _ in printing.places(one) if name in _SHARED_WORDS))
        for isa, one in guests.CONVENTIONS.items()
    ]
    frames = [(isa, " ".join((*one.frame, *guests.TAIL))) for isa, one in guests.CONVENTIONS.items()]
    return (
        f"# The para-virtual interface, version {calls.ABI_MAJOR}.{calls.ABI_MINOR}\n\n## Calls\n\n"
        + _table(("Number", "Call", "Arguments", "What it does", "Result"), calls_)
        + "\n## Results that are errors (their negative)\n\n"
        + _table(("Error", "Why"), [(f"{int(s)} `{s.name}`", t) for s, t in _members(calls.Status)])
        + "\n## Traps\n\n"
        + _table(("Trap", "When"), [(f"{int(trap)} `{trap.name}`", text) for trap, text in _members(guests.Trap)])
        + "\n## Ports\n\n"
        + _table(("Port", "Event"), [(f"{int(port)} `{port.name}`", text) for port, text in _members(guests.Port)])
        + f"\nPorts from {guests.FIRST_OWN_PORT} up to {guests.PORTS - 1} are the guest's own (`EVENT_SEND`).\n"
        + "\n## Entry points and registers\n\n"
        + _table(head, conventions)
        + "\n## Words of the shared page\n\n"
        + _table(("Set", *_SHARED_WORDS), shared)
        + "\n## Frames, word by word\n\n"
        + _table(("Set", "Words"), frames)
    )


def four_ways() -> str:
    """What the sample kernel costs, run in four ways, and what its port took."""
    from bt.bench import ways

    figures = ways.read()
    plain, common, header = ways.shared_lines()
    ports = [(port.isa, str(port.kept), str(port.removed), str(port.added)) for port in ways.ports()]
    return (
        "# One kernel, four ways\n\n"
        "The portable sample's checks (without those of self-modifying code, whose ten thousand rounds would hide the "
        "rest), by `retrap bench ways --json docs/figures/ways.json`. *operation*: a privileged operation by trap, "
        "fixup or device; *call*: a para-virtual call; *memory*: a page made accessible; *entry*: what enters the "
        "guest's kernel; *clock*: the end of a slice of time. *blocks* are the guest's basic blocks. "
        "Polling of devices is in all ways but the last, which has none.\n\n"
        + _table(ways.SUMMARY_HEAD, ways.summary(figures))
        + "\n## Exits by kind of check\n\n"
        + _table(ways.WORKLOAD_HEAD, ways.by_workload(figures))
        + "\n## What the port took\n\n"
        f"Lines that are not blank. The kernel and its user programs ({plain}) are the same files in both. All ports "
        f"share `pv.c` and `pv.h` ({common}); the printed headers have {header}. Of each architecture's own part "
        "(`arch.h`, `arch.c`, `entry.S`; `user.S` stays):\n\n" + _table(("Set", "Kept", "Removed", "Added"), ports)
    )


def xen_calls() -> str:
    """The hypercalls of Xen's interface."""
    from bt import xen_docs

    return xen_docs.xen_calls(_table)


_SHARED_WORDS = ("INTERRUPTS", "INTERRUPTS_ON", "INTERRUPTS_OFF", "EVENTS", "MASK", "FPU")


def _members(kind: type[IntEnum]) -> list[tuple[IntEnum, str]]:
    """Members with their docstrings, in order."""
    return [(kind(int(value)), text) for value, text in documented_members(kind)]


def _number(value: int) -> str:
    return f"{value:#x}" if abs(value) > 9 else str(value)


def documented_constants(module: ModuleType) -> list[tuple[str, int, str]]:
    """Name, value and docstring of a module's integer constants, in their order; no docstring gives an empty text."""
    body = ast.parse(inspect.getsource(module)).body
    found: list[tuple[str, int, str]] = []
    for statement, following in zip(body, [*body[1:], None], strict=True):
        name = _constant_name(statement)
        value = getattr(module, name, None) if name else None
        if name is None or not isinstance(value, int):
            continue
        text = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = " ".join(str(following.value.value).split())
        found.append((name, value, text))
    return found


def _constant_name(statement: ast.stmt) -> str | None:
    target: ast.expr | None = None
    if isinstance(statement, ast.Assign):
        target = statement.targets[0]
    elif isinstance(statement, ast.AnnAssign):
        target = statement.target
    if isinstance(target, ast.Name) and target.id.isupper() and not target.id.startswith("_"):
        return target.id
    return None


def guests() -> str:
    """The guests that can be fetched."""
    from bt.guests import RECIPES

    rows = [
        (f"`{recipe.name}`", recipe.summary, f"`{recipe.kernel}`", f"`{recipe.command_line}`")
        for recipe in RECIPES.values()
    ]
    return "# Guests to fetch\n\n" + _table(("Name", "What it is", "Package", "Command line"), rows)


def console_rules() -> str:
    """The rules by which consoles of two machines are compared."""
    from bt.console_compare import LINUX

    rows = [
        (rule.name, rule.effect.value, rule.why, " ".join(f"`{pattern.pattern}`" for pattern in rule.patterns))
        for rule in LINUX
    ]
    return (
        "# When consoles of the same kernel may differ\n\n"
        "*value*: the groups of the pattern are blanked, the line itself must be on both consoles at the same place. "
        "*order*: the line must be on both, as often, at any place. *presence*: the line may be on one of them only. "
        "Timestamps, terminal escapes and what the firmware prints before the kernel are left out. A difference that "
        "no rule explains fails the comparison.\n\n" + _table(("Rule", "Excuses", "Why", "Patterns"), rows)
    )


def verification_rules() -> str:
    """The rules by which a rewritten run is compared with the reference."""
    from bt.verify.profiles import profiles
    from bt.verify.rules import rows

    text = (
        "# What `retrap verify` compares\n\n"
        "One table for each kind of guest. What stands under *may differ* is left out of the comparison, for the "
        "reason beside it; anything else that differs fails.\n"
    )
    for profile in profiles():
        text += f"\n## {profile.name}: {profile.summary}\n\n"
        text += _table(("Comparison", "Must be the same", "May differ", "Why"), rows(profile))
        text += "\nNot compared at all:\n\n" + _table(("What", "Why"), profile.not_compared)
    return text


def rooms() -> str:
    """Every module with the first line of its docstring, package by package."""
    root = Path(__file__).parent.parent
    text = "# Every room\n\nThe first line of each module's docstring; the lines after it say what it must not know.\n"
    for package in ("emulator", "paravirt", "bt"):
        files = sorted((root / package).rglob("*.py"), key=lambda file: (file.parent, file.name))
        rows = [(f"`{file.relative_to(root)}`", _first_line(file)) for file in files if file.name != "__main__.py"]
        text += f"\n## {package}\n\n" + _table(("Room", "What it is"), rows)
    return text


def _first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


PAGES: dict[str, Callable[[], str]] = {
    "exit-statuses.md": exit_statuses,
    "xen-calls.md": xen_calls,
    "x86-64.md": lambda: sensitive_instructions("x86-64"),
    "i386.md": lambda: sensitive_instructions("i386"),
    "rewriting.md": rewriting,
    "aarch64.md": lambda: sensitive_instructions("aarch64"),
    "armv7.md": lambda: sensitive_instructions("armv7"),
    "mips32.md": lambda: sensitive_instructions("mips32"),
    "engine-quirks.md": engine_quirks,
    "interface.md": guest_interface,
    "para-virtual.md": para_virtual_interface,
    "four-ways.md": four_ways,
    "guests.md": guests,
    "console-rules.md": console_rules,
    "verification-rules.md": verification_rules,
    "rooms.md": rooms,
}
"""File in `docs/generated` -> the function that gives its text."""


def write(directory: Path = DIRECTORY) -> None:
    """Write all pages and remove files that no row of the table makes any more."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (directory / name).write_text(NOTICE + page())
    for file in set(directory.iterdir()):
        if file.name not in PAGES:
            file.unlink()


def write_includes(directory: Path = INCLUDES) -> None:
    """Write what guests include of the para-virtual interface."""
    from paravirt.abi.printing import FILES

    for name, text in FILES.items():
        (directory / name).write_text(text())


def differences(directory: Path = DIRECTORY) -> list[str]:
    """A sentence for each file that is not what the code says."""
    found = []
    for name, page in PAGES.items():
        file = directory / name
        if not file.exists():
            found.append(f"{file} is missing")
        elif file.read_text() != NOTICE + page():
            found.append(f"{file} is out of date")
    extra = {file.name for file in directory.iterdir()} - set(PAGES) if directory.exists() else set()
    return found + [f"{directory / name} is made by nothing" for name in sorted(extra)]


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or check them with `--check`; the exit status."""
    if list(arguments) not in ([], ["--check"]):
        print("usage: python -m bt.docs [--check]", file=sys.stderr)
        return 2
    if not arguments:
        write()
        write_includes()
        return 0
    found = differences()
    for sentence in found:
        print(f"{sentence}; `make docs` prints it anew", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
