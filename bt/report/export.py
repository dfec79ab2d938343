"""Scripts that label patched sites and fixups in Ghidra, IDA, Binary Ninja, rizin and radare2.

Room: `bt/report`. The Python scripts are the files in `scripts/` with the account's places put in as plain data; what
an image calls its symbols is made printable ASCII first, so that no name can become code in any of the tools.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emulator.isa.isas import ISAS

if TYPE_CHECKING:
    from bt.report.account import Account, FixupAccount, SiteAccount

SCRIPTS: Final = Path(__file__).parent / "scripts"
MAXIMUM_REGION: Final = 64 << 20
"""Bytes of fixups that a script carries; the addresses come from a file."""
_CHUNK: Final = 1024
Labels = tuple[list[tuple[str, int, int, str]], list[tuple[str, int, int, str]]]
"""Sites and fixups, each as name, address, size in bytes, comment."""


def labels(account: Account, every: bool = False) -> Labels:
    """What is to be labelled: patched sites (with `every`, the others too) and fixups, by address."""
    at: dict[int, list[SiteAccount]] = {}
    for site in account.sites:
        if site.patched or every:
            at.setdefault(site.start, []).append(site)
    sites = [
        (
            _name(here[0]),
            start,
            max(len(site.old) for site in here),
            "; ".join(_comment(account, site) for site in here),
        )
        for start, here in sorted(at.items())
    ]
    places = {site.start: site for site in account.sites}
    fixups = [
        (_fixup_name(fixup, places), fixup.address, len(fixup.code), _fixup_comment(fixup, places))
        for fixup in account.fixups
    ]
    return sites, fixups


def _plain(text: str) -> str:
    """Printable ASCII, in one line."""
    return re.sub(r"[^ -~]", "?", text)


def _word(text: str) -> str:
    """A name that every tool takes."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")[:120] or "unnamed"


def _name(site: SiteAccount) -> str:
    where = site.symbol if not site.symbol.startswith("0x") else f"{site.address:x}"
    return f"retrap_{_word(site.tactic)}_{_word(where)}_at_{site.address:x}"


def _comment(account: Account, site: SiteAccount) -> str:
    was = "; ".join(line.text for line in account.old_lines(site))
    parts = [f"retrap: {site.instruction} ({site.behaviour}) {site.tactic}"]
    if site.placing:
        parts.append(site.placing)
    if site.patched:
        parts.append(f"was {site.old.hex(' ')} ({was})")
    if site.fixup is not None:
        parts.append(f"fixup at 0x{site.fixup:x}")
    if site.confidence == "data?":
        parts.append("may be data")
    return _plain(", ".join([*parts, site.reason]))


def _fixup_name(fixup: FixupAccount, places: dict[int, SiteAccount]) -> str:
    site = places.get(fixup.site)
    name = site.symbol if site is not None and not site.symbol.startswith("0x") else f"{fixup.site:x}"
    return f"retrap_fixup_{_word(name)}_at_{fixup.address:x}"


def _fixup_comment(fixup: FixupAccount, places: dict[int, SiteAccount]) -> str:
    site = places.get(fixup.site)
    what = f"{site.instruction} in {site.symbol}" if site is not None else "a whole function"
    uses = f", uses up {', '.join(fixup.clobbers)}" if fixup.clobbers else ""
    return _plain(f"retrap: fixup for {what}, called from 0x{fixup.site:x}{uses}")


def region(account: Account) -> tuple[int, bytes] | None:
    """Address and contents of all fixups together; what lies between them is zero."""
    if not account.fixups:
        return None
    start = min(fixup.address for fixup in account.fixups)
    size = max(fixup.address + len(fixup.code) for fixup in account.fixups) - start
    if size > MAXIMUM_REGION:
        return None
    contents = bytearray(size)
    for fixup in account.fixups:
        contents[fixup.address - start : fixup.address - start + len(fixup.code)] = fixup.code
    return start, bytes(contents)


def _title(account: Account) -> str:
    return _plain(f"Written by `retrap export` for {account.path} (original SHA-256 {account.sha256}).")


def _python(tool: str) -> Callable[[Account, bool], str]:
    """A script that holds its places as a literal."""

    def make(account: Account, every: bool) -> str:
        code = region(account)
        sites, fixups = (
            [[name, f"{address:x}", size, comment] for name, address, size, comment in found]
            for found in labels(account, every)
        )
        data: dict[str, Any] = {
            "bits": ISAS[account.isa].bits,
            "region": [f"{code[0]:x}", code[1].hex()] if code is not None else [],
            "fixups": fixups,
            "sites": sites,
        }
        return _fill(tool, account, _literal(data))

    return make


def _fill(tool: str, account: Account, data: str) -> str:
    parts = {"@TITLE@": _title(account), "@DATA@": data}
    template = (SCRIPTS / f"{tool}.script").read_text("utf-8")
    return re.sub("|".join(parts), lambda found: parts[found[0]], template)


def _ghidra(account: Account, every: bool) -> str:
    """A script that reads its places from its own comments, each a line of JSON."""
    sites, fixups = labels(account, every)
    code = region(account)
    rows: list[list[Any]] = []
    if code is not None:
        start, contents = code
        rows += [
            ["code", f"{start + at:x}", contents[at : at + _CHUNK].hex()] for at in range(0, len(contents), _CHUNK)
        ]
    for kind, found in (("fixup", fixups), ("site", sites)):
        rows += [[kind, name, f"{address:x}", size, comment] for name, address, size, comment in found]
    return _fill("ghidra", account, "\n".join(f"#: {json.dumps(row)}" for row in rows))


def _literal(data: dict[str, Any]) -> str:
    """A literal of Python (JSON of texts, numbers and lists is one), a line for each row."""
    rows = []
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], list):
            body = "".join(f"        {json.dumps(row)},\n" for row in value)
            rows.append(f"    {json.dumps(key)}: [\n{body}    ],\n")
        else:
            rows.append(f"    {json.dumps(key)}: {json.dumps(value)},\n")
    return "{\n" + "".join(rows) + "}"


def _mapped(account: Account) -> list[tuple[int, int, int]]:
    """Address, bytes and file offset of the parts of the file that hold fixups, each as one."""
    runs: list[tuple[int, int, int]] = []
    for fixup in account.fixups:
        if fixup.file_offset is None:
            continue
        end = fixup.address + len(fixup.code)
        if runs and fixup.address - runs[-1][0] == fixup.file_offset - runs[-1][2]:
            runs[-1] = runs[-1][0], end - runs[-1][0], runs[-1][2]
        else:
            runs.append((fixup.address, end - fixup.address, fixup.file_offset))
    return runs


def _rizin(account: Account, every: bool) -> str:
    """Flags and comments, in commands that rizin and radare2 share; comments are in base64, so that none is parsed."""
    sites, fixups = labels(account, every)
    lines = [f"# {_title(account)}", "# rizin -i FILE IMAGE, or radare2 -i FILE IMAGE", "fs retrap"]
    for start, size, offset in _mapped(account):
        # The image is the first file that is opened: descriptor 3.
        lines.append(f"om 3 0x{start:x} 0x{size:x} 0x{offset:x} r-x retrap.fixups")
    for name, address, size, comment in [*fixups, *sites]:
        lines.append(f"f {name} {size} @ 0x{address:x}")
        lines.append(f"CCu base64:{base64.b64encode(comment.encode()).decode()} @ 0x{address:x}")
    return "\n".join(lines) + "\n"


TOOLS: Final[dict[str, Callable[[Account, bool], str]]] = {
    "ghidra": _ghidra,
    "ida": _python("ida"),
    "binja": _python("binja"),
    "rizin": _rizin,
}
"""Name of a tool -> what makes its script."""


def export(account: Account, tool: str, every: bool = False) -> str:
    """The script for a tool of `TOOLS`; `every` labels the sites that were left as they are, too."""
    return TOOLS[tool](account, every)
