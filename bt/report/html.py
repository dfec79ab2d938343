"""One self-contained page of HTML: search, filters, a map of the image, old and new code side by side.

Room: `bt/report`. Style and script are the files in `page/`, put into the page; the data are columns of numbers into
tables of text, so that tens of thousands of sites stay small. Nothing in an image is trusted: its texts get into the
page as JSON without a `<`, its script makes text of them and never markup, and the page's policy forbids any request.
"""

from __future__ import annotations

import html
import json
import re
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bt.report.json import summary, version
from emulator.isa.isas import ISAS

if TYPE_CHECKING:
    from bt.disassembly import Line
    from bt.report.account import Account, SiteAccount

PAGE: Final = Path(__file__).parent / "page"
SCRIPTS: Final = ("data.js", "filter.js", "list.js", "detail.js", "map.js", "main.js")
"""In the order in which they run."""
TACTICS: Final = {
    "replaced": "Other instructions stand in its place, and need no exit",
    "same": "Nothing: the instruction does the same deprivileged",
    "inline": "A fixup does the work in the guest",
    "hypercall": "A fixup calls the hypervisor",
    "trap": "A planted trap",
    "native": "Nothing: the instruction exits by itself",
    "covered": "Part of another site's fixup",
    "leave": "Nothing: it never runs where it stands, or nobody asked for it",
}
"""What a tactic means, for people; those that are none of these get the page's spare colour."""
CLASSES: Final = ("traps", "ignored", "leaks", "differs")
CONFIDENCES: Final = ("certain", "likely", "data?")


def page(account: Account) -> str:
    """The page; the same text for the same account."""
    template = (PAGE / "page.html").read_text("utf-8")
    parts = {
        "@TITLE@": html.escape(f"{Path(account.path).name}: retrap report"),
        "@STYLE@": (PAGE / "style.css").read_text("utf-8") + f":root {{ --digits: {account.width}; }}",
        "@SCRIPT@": '"use strict";\n' + "".join((PAGE / name).read_text("utf-8") for name in SCRIPTS),
        "@DATA@": _embed(_Table(account).value()),
    }
    # In one pass: a name that stands in what was put in is not looked at again.
    return re.sub("|".join(parts), lambda found: parts[found[0]], template)


def _embed(value: dict[str, Any]) -> str:
    """JSON that can stand inside a script element: there is no `<` in it, and no line separator of scripts."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


_COLUMNS: Final = (
    *("section", "offset", "file", "symbol", "source", "instruction", "class", "tactic", "confidence", "placing"),
    *("start", "home", "why", "reason", "refused", "oldBytes", "newBytes", "old", "new", "fixup"),
)
"""Of a site: numbers by themselves, or into a table of texts."""


class _Table:
    """An account's sites as columns, while the texts that they point to are collected."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._strings: dict[str, int] = {"": 0}
        self._sections = [
            {
                "name": section.name,
                "address": f"{section.address:#x}",
                "size": section.size,
                "executable": section.executable,
            }
            for section in account.sections
        ]
        self._starts = [section.address for section in account.sections]
        self._values = {
            "tactic": _present(TACTICS, (site.tactic for site in account.sites)),
            "class": _present(CLASSES, (site.behaviour for site in account.sites)),
            "confidence": _present(CONFIDENCES, (site.confidence for site in account.sites)),
            "instruction": _present((), (site.instruction for site in account.sites)),
        }
        self._index = {name: {text: at for at, text in enumerate(texts)} for name, texts in self._values.items()}
        self._fixups = {fixup.address: number for number, fixup in enumerate(account.fixups)}

    def value(self) -> dict[str, Any]:
        """All that the page needs."""
        account = self._account
        isa = ISAS[account.isa]
        sites = self._columns(account.sites)
        return {
            "tool": version(),
            "image": {
                "path": account.path,
                "sha256": account.sha256,
                "title": isa.title,
                "order": account.order,
                "digits": account.width,
                "mode": account.mode,
                "size": account.size,
                "rewritten_size": account.rewritten_size,
            },
            "summary": {name: item for name, item in summary(account).items() if isinstance(item, int)},
            "sections": self._sections,
            "values": self._values,
            "colours": [name if name in TACTICS else "other" for name in self._values["tactic"]],
            "tactics": [TACTICS.get(name, "") for name in self._values["tactic"]],
            "rows": self._rows(),
            "sites": sites,
            "fixups": [
                {
                    "address": f"{fixup.address:#x}",
                    "code": self._code(account.fixup_lines(fixup)),
                    "clobbers": ", ".join(fixup.clobbers),
                    "file": fixup.file_offset,
                }
                for fixup in account.fixups
            ],
            "changes": self._changes(),
            "strings": list(self._strings),
        }

    def _string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings))

    def _code(self, lines: Iterable[Line]) -> list[int]:
        return [number for line in lines for number in (self._string(line.bytes.hex()), self._string(line.text))]

    def _section(self, site: SiteAccount) -> int:
        """Index of the section that holds it; one is made up for a site that lies in none."""
        at = bisect_right(self._starts, site.address) - 1
        if at >= 0 and site.address < self._starts[at] + self._account.sections[at].size:
            return at
        name = site.section or "(elsewhere)"
        for number in range(len(self._starts), len(self._sections)):
            section = self._sections[number]
            if section["name"] == name:
                section["size"] = site.address + len(site.old) - int(str(section["address"]), 16)
                return number
        self._sections.append(
            {"name": name, "address": f"{site.address:#x}", "size": len(site.old), "executable": True}
        )
        return len(self._sections) - 1

    def _columns(self, sites: Iterable[SiteAccount]) -> dict[str, list[Any]]:
        account = self._account
        columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        for site in sites:
            section = self._section(site)
            row = {
                "section": section,
                "offset": site.address - int(str(self._sections[section]["address"]), 16),
                "file": site.file_offset,
                "symbol": self._string(site.symbol),
                "source": self._string(site.source),
                "instruction": self._index["instruction"][site.instruction],
                "class": self._index["class"][site.behaviour],
                "tactic": self._index["tactic"][site.tactic],
                "confidence": self._index["confidence"][site.confidence],
                "placing": self._string(site.placing),
                "start": site.address - site.start,
                "home": self._string("" if site.home is None else f"{site.home:0{account.width}x}"),
                "why": self._string(site.confidence_reason),
                "reason": self._string(site.reason),
                "refused": self._string(site.refused),
                "oldBytes": self._string(site.old.hex()),
                "newBytes": self._string(site.new.hex()),
                "old": self._code(account.old_lines(site)),
                "new": self._code(account.new_lines(site)),
                "fixup": -1 if site.fixup is None else self._fixups.get(site.fixup, -1),
            }
            for name, value in row.items():
                columns[name].append(value)
        return columns

    def _rows(self) -> dict[str, dict[str, str]]:
        known = self._account.rows
        return {
            name: {
                "operation": known[name].operation.name,
                "condition": known[name].condition,
                "manual": known[name].manual,
            }
            for name in self._values["instruction"]
            if name in known
        }

    def _changes(self) -> list[dict[str, Any]]:
        """Other changes by their reason; of thousands of places the first two hundred are listed."""
        places: dict[str, list[int]] = {}
        for change in self._account.changes:
            places.setdefault(change.reason, []).extend(change.addresses)
        return [
            {"reason": reason, "count": len(found), "addresses": [f"{place:#x}" for place in sorted(found)[:200]]}
            for reason, found in places.items()
        ]


def _present(known: Iterable[str], found: Iterable[str]) -> list[str]:
    """The values that occur: those known in their order, then the others by the alphabet."""
    values = set(found)
    ordered = [name for name in known if name in values]
    return ordered + sorted(values - set(ordered))
