"""SARIF: valid by the official schema, and a log that says enough to find and to repeat every patch."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bt.image import from_bytes
from bt.report.formats import render
from tests.bt.report.small_account import rewritten, small_account
from tests.bt.rewrite.small_kernel import addresses, image

SCHEMA = "sarif-2.1.0-rtm.5.json"
SHA256 = "2d99159ae54a3eea97f81781cff48780548657c35949f4b7f25e99a2ba4de4f8"


def log(mode: str = "inline") -> Any:
    return json.loads(render(small_account(mode), "sarif"))


def results(value: Any) -> list[dict[str, Any]]:
    (run,) = value["runs"]
    return list(run["results"])


@pytest.fixture(scope="module")
def official() -> Any:
    """The schema of the standard, as `scripts/fetch-sarif-schema` got it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    file = Path(base) / "retrap" / "schemas" / SCHEMA
    if not file.exists():
        pytest.skip(f"{file} is not there; scripts/fetch-sarif-schema fetches it with npm")
    data = file.read_bytes()
    assert hashlib.sha256(data).hexdigest() == SHA256, f"{file} is not the schema that was published; remove it"
    return json.loads(data)


@pytest.mark.parametrize("mode", ["inline", "trap"])
def test_the_log_is_valid_by_the_official_schema(official: Any, mode: str) -> None:
    jsonschema.Draft4Validator(official).validate(log(mode))


def test_a_log_with_source_lines_is_valid_and_names_them(official: Any) -> None:
    account = small_account()
    sites = (replace(account.sites[0], source="arch/x86/kernel/head 64.S:12"), *account.sites[1:])
    value = json.loads(render(replace(account, sites=sites), "sarif"))
    jsonschema.Draft4Validator(official).validate(value)
    (place,) = results(value)[0]["relatedLocations"]
    assert place["physicalLocation"]["region"] == {"startLine": 12}
    assert place["physicalLocation"]["artifactLocation"] == {"uri": "arch/x86/kernel/head%2064.S", "index": 1}


def test_the_official_schema_refuses_a_broken_log(official: Any) -> None:
    value = log()
    results(value)[0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(official).validate(value)


def test_every_result_points_to_its_rule_its_bytes_and_its_section() -> None:
    value, data = log(), bytes(image().elf)
    (run,) = value["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for result in results(value):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        place = result["locations"][0]["physicalLocation"]
        region, address = place["region"], place["address"]
        found = data[region["byteOffset"] : region["byteOffset"] + region["byteLength"]]
        assert base64.b64decode(region["snippet"]["binary"]) == found
        assert run["addresses"][address["parentIndex"]]["name"] == result["properties"]["section"] == ".text"
        begin = int(result["properties"]["address"], 16)
        assert address["offsetFromParent"] == begin - min(addresses().values())


def test_carrying_out_the_fixes_gives_the_rewritten_text() -> None:
    data, made = bytearray(image().elf), from_bytes(rewritten(), "out")
    for result in results(log()):
        for fix in result.get("fixes", ()):
            (replacement,) = fix["artifactChanges"][0]["replacements"]
            region = replacement["deletedRegion"]
            new = base64.b64decode(replacement["insertedContent"]["binary"])
            assert len(new) == region["byteLength"]
            data[region["byteOffset"] : region["byteOffset"] + len(new)] = new
    assert data[64:] == made.elf[64 : len(data)]


def test_what_faults_at_every_execution_is_a_note_and_what_may_be_data_is_for_review() -> None:
    account = small_account()
    doubtful = (replace(account.sites[0], confidence="data?"), *account.sites[1:])
    value = json.loads(render(replace(account, sites=doubtful), "sarif"))
    first, *rest = results(value)
    assert (first["kind"], first["level"]) == ("review", "none")
    expected = {"trap": ("fail", "note"), "native": ("fail", "note"), "leave": ("notApplicable", "none")}
    for result in rest:
        assert (result["kind"], result["level"]) == expected.get(result["properties"]["tactic"], ("pass", "none"))
