"""Reports on Debian's kernel, as it was fetched: valid by their schemas, every site in them, the page whole."""

from __future__ import annotations

import json

import jsonschema
import pytest

from bt import guests
from bt.image import from_bytes, load
from bt.planner import plan
from bt.report.account import Account
from bt.report.export import TOOLS, export
from bt.report.formats import render
from bt.report.json import SCHEMA
from bt.report.source import of_rewritten
from bt.rewrite import rewrite
from bt.scan import scan
from emulator.errors import Unavailable

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def account() -> Account:
    try:
        original = load(guests.find("debian-amd64").kernel)
    except Unavailable as error:
        pytest.skip(str(error))
    made = of_rewritten(from_bytes(rewrite(original, plan(original, scan(original), "auto")), "vmlinux.retrap"))
    assert made is not None
    return made


def test_the_json_is_valid_and_has_every_site(account: Account) -> None:
    document = json.loads(render(account, "json"))
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    assert [int(site["address"], 16) for site in document["sites"]] == [site.address for site in account.sites]
    assert document["summary"]["sites"] > 3000
    assert all(site["reason"] for site in document["sites"])
    fixups = {fixup["address"] for fixup in document["fixups"]}
    assert {site["fixup"] for site in document["sites"]} <= fixups | {None}


def test_the_page_and_the_log_have_every_site(account: Account) -> None:
    data = render(account, "html").split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert len(json.loads(data)["sites"]["offset"]) == len(account.sites)
    assert len(json.loads(render(account, "sarif"))["runs"][0]["results"]) == len(account.sites)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_patched_site_is_exported(account: Account, tool: str) -> None:
    script = export(account, tool)
    for site in account.sites:
        if site.patched:
            assert f"{site.start:x}" in script
