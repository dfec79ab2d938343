"""Reports as plain values for JSON: the same contents as the text, for programs.

Room: `bt/report`. Addresses are strings in hexadecimal with a prefix, since many readers of JSON lose 64-bit numbers;
bytes are hexadecimal without one. `report-1.schema.json` beside this file describes every document; keys do not
change their meaning within one `FORMAT`, new ones may be added.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bt.diff import Comparison, Difference
    from bt.disassembly import Line
    from bt.image import Image
    from bt.report.account import Account, ChangeAccount, FixupAccount, SectionAccount, SiteAccount
    from bt.scan import Site

FORMAT: Final = 1
SCHEMA: Final = Path(__file__).parent / "report-1.schema.json"
"""The published description of `FORMAT`, JSON Schema 2020-12."""


def dumps(value: object) -> str:
    """JSON text that is the same for the same value."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def dumps_flat(value: object) -> str:
    """As `dumps`, on one line: for programs alone."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def dumps_rows(value: dict[str, Any]) -> str:
    """JSON text of a report: a line for each key, and for each row of a list; the same for the same value."""
    lines = []
    for key, item in value.items():
        head = f" {json.dumps(key)}: "
        if isinstance(item, list) and item:
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in item)
            lines.append(f"{head}[\n  {rows}\n ]")
        else:
            lines.append(head + json.dumps(item, ensure_ascii=False))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def version() -> str:
    """Of this retrap."""
    return metadata.version("retrap")


def _head(kind: str) -> dict[str, Any]:
    return {"format": FORMAT, "kind": kind, "tool": {"name": "retrap", "version": version()}}


def rewrite_json(account: Account) -> dict[str, Any]:
    """What was done to an image."""
    return {
        **_head("rewrite"),
        "image": _image(account),
        "summary": summary(account),
        "sections": [_section(section) for section in account.sections],
        "sites": [_site(account, site) for site in account.sites],
        "fixups": [_fixup(account, fixup) for fixup in account.fixups],
        "changes": [_change(change) for change in account.changes],
    }


def _image(account: Account) -> dict[str, Any]:
    return {
        "path": account.path,
        "sha256": account.sha256,
        "isa": account.isa,
        "byte_order": account.order,
        "mode": account.mode,
        "size": account.size,
        "rewritten_size": account.rewritten_size,
    }


def summary(account: Account) -> dict[str, Any]:
    """The figures that a reader wants first."""
    quiet, sites = account.without_trap()
    return {
        "sites": sites,
        "without_trap": quiet,
        "patched": sum(site.patched for site in account.sites),
        "fixups": len(account.fixups),
        "fixup_bytes": sum(len(fixup.code) for fixup in account.fixups),
        "changes": sum(len(change.addresses) for change in account.changes),
        "by_tactic": account.count("tactic"),
        "by_class": account.count("behaviour"),
        "by_confidence": account.count("confidence"),
        "by_section": account.count("section"),
        "by_instruction": account.count("instruction"),
    }


def _section(section: SectionAccount) -> dict[str, Any]:
    return {
        "name": section.name,
        "address": f"{section.address:#x}",
        "size": section.size,
        "file_offset": section.file_offset,
        "executable": section.executable,
    }


def _site(account: Account, site: SiteAccount) -> dict[str, Any]:
    return {
        **_place(site),
        "confidence": site.confidence,
        "confidence_reason": site.confidence_reason,
        "tactic": site.tactic,
        "placing": site.placing or None,
        "without_trap": site.without_trap,
        "reason": site.reason,
        "refused": site.refused,
        "start": f"{site.start:#x}",
        "old": _code(site.old, account.old_lines(site)),
        "new": _code(site.new, account.new_lines(site) or account.old_lines(site)),
        "fixup": _address(site.fixup),
        "home": _address(site.home),
    }


def _address(address: int | None) -> str | None:
    return None if address is None else f"{address:#x}"


def _place(site: SiteAccount) -> dict[str, Any]:
    return {
        "address": f"{site.address:#x}",
        "file_offset": site.file_offset,
        "section": site.section,
        "symbol": site.symbol,
        "source": site.source or None,
        "instruction": site.instruction,
        "operation": site.operation,
        "class": site.behaviour,
        "state": site.state or None,
    }


def _code(code: bytes, lines: Iterable[Line]) -> dict[str, Any]:
    return {"bytes": code.hex(), "code": [line.text for line in lines]}


def _fixup(account: Account, fixup: FixupAccount) -> dict[str, Any]:
    return {
        "address": f"{fixup.address:#x}",
        "site": f"{fixup.site:#x}",
        "file_offset": fixup.file_offset,
        "clobbers": list(fixup.clobbers),
        **_code(fixup.code, account.fixup_lines(fixup)),
    }


def _change(change: ChangeAccount) -> dict[str, Any]:
    return {
        "reason": change.reason,
        "old": change.old.hex(),
        "new": change.new.hex(),
        "addresses": [f"{address:#x}" for address in change.addresses],
    }


def comparison_json(found: Comparison) -> dict[str, Any]:
    """What differs between two accounts."""
    return {
        **_head("comparison"),
        "a": _image(found.before),
        "b": _image(found.after),
        "matched_by": found.matched_by,
        "same": found.same,
        "kept": found.kept,
        "gained": [{**_place(site), "tactic": site.tactic, "reason": site.reason} for site in found.gained],
        "lost": [{**_place(site), "tactic": site.tactic, "reason": site.reason} for site in found.lost],
        "changed": [_difference(difference) for difference in found.changed],
    }


def _difference(difference: Difference) -> dict[str, Any]:
    old, new = difference.before, difference.after
    return {
        **_place(new),
        "address_in_a": f"{old.address:#x}",
        "reason": new.reason,
        "refused": new.refused,
        "fields": {name: {"a": before, "b": after} for name, (before, after) in difference.fields.items()},
    }


def scan_json(image: Image, sites: Sequence[Site]) -> dict[str, Any]:
    """A scan."""
    from bt.report.account import scanned

    found = scanned(image, sites)
    counts = Counter(site.instruction for site in found.sites)
    return {
        **_head("scan"),
        "image": _image(found),
        "counts": dict(sorted(counts.items())),
        "sites": [
            {
                **_place(site),
                "bytes": site.old.hex(),
                "confidence": site.confidence,
                "confidence_reason": site.confidence_reason,
            }
            for site in found.sites
        ],
    }
