"""Reports as plain values for JSON: the same contents as the text, for programs.

Room: `bt/report`. Addresses are strings in hexadecimal with a prefix, since many readers of JSON lose 64-bit numbers;
bytes are hexadecimal without one. Keys do not change their meaning within one `FORMAT`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bt.diff import Diff, Line, SiteDiff
    from bt.image import Image
    from bt.plan import PlannedSite
    from bt.scan import Site

FORMAT: Final = 1


def dumps(value: object) -> str:
    """JSON text that is the same for the same value."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def scan_json(image: Image, sites: Sequence[Site]) -> dict[str, Any]:
    """A scan."""
    counts = Counter(site.row.name for site in sites)
    return {
        "format": FORMAT,
        "image": image.path,
        "sha256": image.sha256,
        "counts": dict(sorted(counts.items())),
        "sites": [
            {
                "address": f"{site.address:#x}",
                "bytes": site.bytes.hex(),
                "instruction": site.row.name,
                "at_user_level": site.row.at_user_level.value,
                "operation": site.row.operation.name,
                "section": site.section,
                "symbol": site.symbol,
                "file_offset": site.file_offset,
                "doubtful": site.doubtful,
            }
            for site in sites
        ],
    }


def diff_json(diff: Diff) -> dict[str, Any]:
    """A comparison of an image with its rewritten form."""
    return {
        "format": FORMAT,
        "mode": diff.plan.mode,
        "original_sha256": diff.manifest.original_sha256,
        "patched_sha256": diff.manifest.patched_sha256,
        "counts": diff.plan.counts(),
        "sites": [_site_diff(site) for site in diff.sites],
        "untouched": [_site(site) for site in diff.untouched],
        "changes": [
            {
                "address": f"{change.address:#x}",
                "file_offset": change.file_offset,
                "old": change.old.hex(),
                "new": change.new.hex(),
                "reason": change.reason,
            }
            for change in diff.changes
        ],
    }


def _site_diff(diff: SiteDiff) -> dict[str, Any]:
    row = _site(diff.site)
    row["old"], row["new"], row["fixup"] = _lines(diff.old), _lines(diff.new), _lines(diff.fixup)
    return row


def _site(site: PlannedSite) -> dict[str, Any]:
    return {
        "address": f"{site.address:#x}",
        "symbol": site.symbol,
        "section": site.section,
        "file_offset": site.file_offset,
        "instruction": site.instruction,
        "class": site.behaviour,
        "doubtful": site.doubtful,
        "tactic": site.tactic.value,
        "reason": site.reason,
        "refused": site.refused,
    }


def _lines(lines: Sequence[Line]) -> list[dict[str, str]]:
    return [{"address": f"{line.address:#x}", "bytes": line.bytes.hex(), "text": line.text} for line in lines]
