"""SARIF 2.1.0: the account of an image for tools that collect findings of many analyses.

Room: `bt/report`. Field names are those of the OASIS standard (SARIF Version 2.1.0). A site is a result: `review`
where it may be data, `notApplicable` where it never runs, `fail` at level note where it costs a fault, else `pass`.
Its fix is the patch itself, so the log is enough to repeat the rewriting.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from bt.report.json import summary, version

if TYPE_CHECKING:
    from bt.report.account import Account, SiteAccount

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
IMAGE, FIRST_SOURCE = 0, 1


def sarif(account: Account) -> dict[str, Any]:
    """The log: one run on one image."""
    sources = sorted({_source(site)[0] for site in account.sites if site.source})
    names = sorted({site.instruction for site in account.sites})
    image = _uri(account.path)
    run = _Run(account, image, {name: at for at, name in enumerate(names)}, {f: i for i, f in enumerate(sources)})
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": _driver(account, names)},
                "columnKind": "unicodeCodePoints",
                "artifacts": [_artifact(account, image), *({"location": {"uri": _uri(file)}} for file in sources)],
                "addresses": [_section(section.name, section.size) for section in account.sections],
                "results": [run.result(site) for site in account.sites],
                "properties": {"isa": account.isa, "mode": account.mode, "summary": summary(account)},
            }
        ],
    }


def _uri(path: str) -> str:
    """A reference by URI; a relative path stays relative."""
    return ("file://" if path.startswith("/") else "") + quote(path)


def _artifact(account: Account, uri: str) -> dict[str, Any]:
    artifact: dict[str, Any] = {
        "location": {"uri": uri},
        "roles": ["analysisTarget"],
        "mimeType": "application/x-executable",
        "description": {"text": "The uncompressed ELF; offsets are in it."},
        "hashes": {"sha-256": account.sha256},
    }
    if account.size is not None:
        artifact["length"] = account.size
    return artifact


def _section(name: str, size: int) -> dict[str, Any]:
    # Absolute addresses of a 64-bit kernel are no numbers that readers of JSON keep: they are among the properties of
    # results, as text, and the standard's own fields count from the section.
    return {"kind": "section", "name": name, "relativeAddress": 0, "length": size}


def _driver(account: Account, names: list[str]) -> dict[str, Any]:
    return {
        "name": "retrap",
        "semanticVersion": version(),
        "shortDescription": {"text": "Finds the sensitive instructions of a kernel and rewrites them."},
        "rules": [_rule(account, name) for name in names],
    }


def rule_id(isa: str, name: str) -> str:
    """The stable identifier of a row of a table: its name without what identifiers cannot hold."""
    return f"{isa}/{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-').lower()}"


def _rule(account: Account, name: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"id": rule_id(account.isa, name), "name": name}
    row = account.rows.get(name)
    if row is None:
        return rule
    condition = f" ({row.condition})" if row.condition else ""
    text = f"{name}: in user mode it {_CLASSES[row.at_user_level.value]}{condition}."
    rule["shortDescription"] = {"text": text}
    rule["fullDescription"] = {"text": f"{text} It stands for {row.operation.name}. {row.note}".strip()}
    rule["help"] = {"text": f"Manual: {row.manual}"}
    rule["defaultConfiguration"] = {"level": "note"}
    rule["properties"] = {
        "class": row.at_user_level.value,
        "operation": row.operation.name,
        "routes": [route.value for route in row.routes],
        "example": row.example,
    }
    return rule


_CLASSES: Final = {
    "traps": "traps",
    "ignored": "completes without its privileged part",
    "leaks": "completes and shows or changes privileged state",
    "differs": "completes with another effect than in kernel mode",
}


def _source(site: SiteAccount) -> tuple[str, int]:
    file, _, line = site.source.rpartition(":")
    return (file, int(line)) if file and line.isdecimal() else (site.source, 0)


class _Run:
    """What results refer to by number."""

    def __init__(self, account: Account, image: str, rules: dict[str, int], sources: dict[str, int]) -> None:
        self._account = account
        self._image = image
        self._rules = rules
        self._sources = sources
        self._sections = {section.name: number for number, section in enumerate(account.sections)}

    def result(self, site: SiteAccount) -> dict[str, Any]:
        """A site."""
        kind = "pass"
        if site.confidence == "data?":
            kind = "review"
        elif site.tactic == "leave":
            kind = "notApplicable"
        elif not site.without_trap:
            kind = "fail"
        result: dict[str, Any] = {
            "ruleId": rule_id(self._account.isa, site.instruction),
            "ruleIndex": self._rules[site.instruction],
            "kind": kind,
            "level": "note" if kind == "fail" else "none",
            "message": {"text": _message(site)},
            "locations": [self._location(site)],
            "partialFingerprints": {"site/v1": f"{site.section}:{site.symbol}:{site.instruction}:{site.old.hex()}"},
            "properties": self._properties(site),
        }
        if site.source:
            result["relatedLocations"] = [self._source_location(site)]
        if site.patched:
            result["fixes"] = [self._fix(site)]
        return result

    def _location(self, site: SiteAccount) -> dict[str, Any]:
        address: dict[str, Any] = {
            "kind": "instruction",
            "name": site.symbol,
            "fullyQualifiedName": f"{site.section}!{site.symbol}",
            "length": len(site.old),
        }
        number = self._sections.get(site.section)
        if number is not None:
            offset = site.start - self._account.sections[number].address
            address |= {"parentIndex": number, "offsetFromParent": offset, "relativeAddress": offset}
        return {
            "physicalLocation": {
                "artifactLocation": {"uri": self._image, "index": IMAGE},
                "region": self._region(site) | {"snippet": {"binary": _base64(site.old)}},
                "address": address,
            },
            "logicalLocations": [{"name": site.function, "fullyQualifiedName": site.symbol, "kind": "function"}],
        }

    def _region(self, site: SiteAccount) -> dict[str, Any]:
        return {"byteOffset": site.patch_offset, "byteLength": len(site.old)}

    def _source_location(self, site: SiteAccount) -> dict[str, Any]:
        file, line = _source(site)
        place: dict[str, Any] = {"artifactLocation": {"uri": _uri(file), "index": FIRST_SOURCE + self._sources[file]}}
        if line:
            place["region"] = {"startLine": line}
        return {"physicalLocation": place, "message": {"text": "the line that it was compiled from"}}

    def _fix(self, site: SiteAccount) -> dict[str, Any]:
        replacement = {"deletedRegion": self._region(site), "insertedContent": {"binary": _base64(site.new)}}
        return {
            "description": {"text": f"{site.tactic}: {site.reason}"},
            "artifactChanges": [
                {"artifactLocation": {"uri": self._image, "index": IMAGE}, "replacements": [replacement]}
            ],
        }

    def _properties(self, site: SiteAccount) -> dict[str, Any]:
        account = self._account
        properties: dict[str, Any] = {
            "address": f"{site.address:#x}",
            "section": site.section,
            "class": site.behaviour,
            "operation": site.operation,
            "confidence": site.confidence,
            "confidenceReason": site.confidence_reason,
            "tactic": site.tactic,
            "placing": site.placing,
            "reason": site.reason,
            "refused": site.refused,
            "old": {"bytes": site.old.hex(), "code": [line.text for line in account.old_lines(site)]},
            "new": {"bytes": site.new.hex(), "code": [line.text for line in account.new_lines(site)]},
        }
        fixup = account.fixup_of.get(site.fixup) if site.fixup is not None else None
        if fixup is not None:
            properties["fixup"] = {
                "address": f"{fixup.address:#x}",
                "fileOffset": fixup.file_offset,
                "bytes": fixup.code.hex(),
                "code": [line.text for line in account.fixup_lines(fixup, site.state)],
                "clobbers": list(fixup.clobbers),
            }
        return properties


def _message(site: SiteAccount) -> str:
    refused = f"; nothing better: {site.refused}" if site.refused else ""
    doubt = f" It may be data: {site.confidence_reason}." if site.confidence == "data?" else ""
    return f"{site.instruction} in {site.symbol}: {site.tactic} ({site.reason}{refused}).{doubt}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
