"""Reports as JSON: what the published schema says, no more and no less, and the same text every time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bt.diff import compare
from bt.report import json as json_report
from bt.report.formats import FORMATS, render
from bt.scan import scan
from tests.bt.report.small_account import small_account
from tests.bt.rewrite.small_kernel import addresses, image

SCHEMA: dict[str, Any] = json.loads(json_report.SCHEMA.read_text())
DOCUMENTATION = Path(__file__).parents[3] / "docs" / "schema" / json_report.SCHEMA.name


def strict(schema: Any) -> Any:
    """The schema that refuses keys it does not name: what is printed must be described."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if "properties" in result and "required" in result:
        result["additionalProperties"] = False
    return result


def documents() -> dict[str, dict[str, Any]]:
    inline, trap = small_account(), small_account("trap")
    return {
        "rewrite": json_report.rewrite_json(inline),
        "scan": json_report.scan_json(image(), scan(image())),
        "comparison": json_report.comparison_json(compare(inline, replace(trap, sites=trap.sites[1:]))),
        "same": json_report.comparison_json(compare(inline, inline)),
    }


def test_the_schema_is_sound_and_the_published_one_is_the_packages() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert DOCUMENTATION.read_text() == json_report.SCHEMA.read_text()
    assert SCHEMA["$id"] == f"urn:retrap:report:{json_report.FORMAT}"
    assert json_report.SCHEMA.name == f"report-{json_report.FORMAT}.schema.json"


@pytest.mark.parametrize("name", ["rewrite", "scan", "comparison", "same"])
def test_every_document_is_what_the_schema_says_and_holds_nothing_else(name: str) -> None:
    document = documents()[name]
    assert document["format"] == json_report.FORMAT
    jsonschema.Draft202012Validator(strict(SCHEMA)).validate(json.loads(json_report.dumps_rows(document)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 2),
        (("kind",), "other"),
        (("sites", 0, "address"), 4096),
        (("sites", 0, "old", "bytes"), "0x90"),
        (("sites", 0, "class"), "harmless"),
        (("summary", "sites"), -1),
        (("image", "sha256"), "00"),
    ],
)
def test_the_schema_refuses_what_is_none(path: tuple[str | int, ...], value: object) -> None:
    document: Any = json.loads(json_report.dumps_rows(documents()["rewrite"]))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_a_site_tells_all_there_is_to_know() -> None:
    site = next(row for row in documents()["rewrite"]["sites"] if row["address"] == f"{addresses()['flags']:#x}")
    assert site["instruction"] == "PUSHF"
    assert site["operation"] == "READ_FLAGS"
    assert site["class"] == "leaks"
    assert site["tactic"] == "inline"
    assert site["old"] == {"bytes": "9c580f1f4000", "code": ["pushfq", "pop rax", "nop [rax]"]}
    assert site["new"]["code"][0].startswith("jmp 0x")
    fixup = next(row for row in documents()["rewrite"]["fixups"] if row["address"] == site["fixup"])
    assert fixup["site"] == site["address"]
    assert fixup["code"][0] == "pushfq"
    assert fixup["code"][-1].startswith("jmp 0x")


def test_figures_are_sums_over_the_sites() -> None:
    document = documents()["rewrite"]
    summary = document["summary"]
    assert summary["sites"] == len(document["sites"]) == len(scan(image()))
    for field in ("by_tactic", "by_class", "by_confidence", "by_section", "by_instruction"):
        assert sum(summary[field].values()) == summary["sites"]
    assert summary["patched"] == sum(site["old"]["bytes"] != site["new"]["bytes"] for site in document["sites"])
    assert summary["fixups"] == len(document["fixups"]) > 0


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_the_same_text_twice(name: str) -> None:
    assert render(small_account(), name) == render(small_account(), name)
