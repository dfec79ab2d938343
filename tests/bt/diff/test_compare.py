"""Two images or two manifests beside each other: what one has and the other lacks, and the status that says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bt.cli import diff as diff_command
from bt.diff import compare
from bt.report.account import Account
from emulator.errors import BadImage, UsageError
from tests.bt.report.small_account import rewritten, small_account
from tests.bt.rewrite.small_kernel import addresses, kernel


def call(*arguments: str) -> Result:
    return CliRunner(catch_exceptions=False).invoke(diff_command.command, arguments)


def moved(account: Account, by: int) -> Account:
    """As another kernel would be: every address differs, the functions are the same."""
    sites = tuple(
        replace(site, address=site.address + by, symbol=f"f{n // 2}+{n:#x}") for n, site in enumerate(account.sites)
    )
    return replace(account, sha256=f"{by:064x}", sites=sites)


def test_an_image_is_the_same_as_itself() -> None:
    found = compare(small_account(), small_account())
    assert found.same
    assert found.kept == len(small_account().sites)


def test_other_tactics_are_told_with_what_they_were() -> None:
    found = compare(small_account("trap"), small_account("inline"))
    assert not found.same
    assert not found.gained
    assert not found.lost
    changed = {difference.after.address: difference.fields for difference in found.changed}
    assert changed[addresses()["flags"]] == {"tactic": ("trap", "inline")}
    assert addresses()["sgdt"] not in changed
    assert found.kept + len(found.changed) == len(small_account().sites)


def test_gained_and_lost_sites_are_told_from_each_other() -> None:
    whole = small_account()
    part = replace(whole, sites=whole.sites[1:])
    assert compare(part, whole).gained == whole.sites[:1]
    assert compare(whole, part).lost == whole.sites[:1]


def test_two_kernels_are_matched_by_function_and_order() -> None:
    one, other = moved(small_account(), 0x1000), moved(small_account(), 0x20_0000)
    found = compare(one, other)
    assert found.same
    assert found.matched_by == "function"
    shorter = replace(other, sites=tuple(site for site in other.sites if site.function != "f1"))
    assert {site.function for site in compare(one, shorter).lost} == {"f1"}


def test_two_instruction_sets_are_not_compared() -> None:
    with pytest.raises(UsageError, match="one instruction set"):
        compare(small_account(), replace(small_account(), isa="aarch64"))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An original, what was made of it in two ways, and a manifest."""
    from bt.image import from_bytes
    from bt.manifest import read

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    contents = {"original": kernel(), "inline": rewritten(), "trap": rewritten("trap")}
    made = read(from_bytes(contents["inline"], "x"))
    assert made is not None
    contents["plan.json"] = json.dumps(made.plan.to_json()).encode()
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return {name: str(tmp_path / name) for name in contents}


@pytest.mark.parametrize(
    ("a", "b", "status"),
    [
        ("original", "original", 0),
        ("inline", "inline", 0),
        ("inline", "plan.json", 0),
        ("original", "inline", 0),
        ("inline", "trap", 1),
        ("trap", "plan.json", 1),
        ("inline", "original", 1),
    ],
)
def test_the_status_says_whether_there_is_a_difference(files: dict[str, str], a: str, b: str, status: int) -> None:
    assert call(files[a], files[b]).exit_code == status
    assert call(files[a], files[b], "--json").exit_code == status


def test_text_and_json_name_the_changed_site(files: dict[str, str]) -> None:
    report = call(files["trap"], files["inline"]).output
    assert "tactic trap -> inline" in report
    assert f"{addresses()['flags']:x}" in report
    document = json.loads(call(files["trap"], files["inline"], "--json").output)
    (row,) = [row for row in document["changed"] if row["address"] == f"{addresses()['flags']:#x}"]
    assert row["fields"] == {"tactic": {"a": "trap", "b": "inline"}}


def test_what_is_neither_image_nor_manifest_is_refused_by_name(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"format": 1, "sites": [')
    with pytest.raises(BadImage, match=r"broken\.json.*no JSON"):
        call(files["inline"], str(tmp_path / "broken.json"))
    (tmp_path / "latin.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(BadImage, match=r"latin\.json.*UTF-8"):
        call(str(tmp_path / "latin.json"), files["inline"])
    with pytest.raises(UsageError, match="none"):
        call(str(tmp_path / "none"), files["inline"])
    with pytest.raises(BadImage, match="directory"):
        call(str(tmp_path), files["inline"])
