"""Differences: every patched site with its code before and after, and no change that nobody tells of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bt import manifest
from bt.cli import diff as diff_command
from bt.cli import rewrite as rewrite_commands
from bt.cli import scan as scan_command
from bt.diff import check
from bt.image import from_bytes
from bt.planner import plan
from bt.report import text
from bt.rewrite import rewrite
from bt.scan import scan
from emulator.errors import BadImage, UsageError, VerifyFailed
from tests.bt.rewrite.small_kernel import addresses, image, kernel


def rewritten(mode: str = "inline") -> bytes:
    one = image()
    return rewrite(one, plan(one, scan(one), mode))


def test_every_patched_site_is_shown_with_old_and_new_code() -> None:
    found = check(image(), from_bytes(rewritten(), "out"))
    at = addresses()
    sites = {site.address: site for site in found.sites}
    flags = sites[at["flags"]]
    assert [line.text for line in found.old_lines(flags)] == ["pushfq", "pop rax", "nop [rax]"]
    assert found.new_lines(flags)[0].text.startswith("jmp ")
    assert flags.fixup is not None
    assert found.fixup_lines(found.fixup_of[flags.fixup])[0].text == "pushfq"
    assert [line.text for line in found.new_lines(sites[at["sgdt"]])] == ["hlt"]
    assert len(found.sites) == len(scan(image()))


def test_the_text_names_address_class_tactic_and_reason() -> None:
    report = text.diff_text(check(image(), from_bytes(rewritten("trap"), "out")))
    assert f"{addresses()['sgdt']:016x}" in report
    assert "SGDT (leaks): trap" in report
    assert "completes in user mode" in report


def test_a_change_that_the_manifest_does_not_tell_of_fails() -> None:
    """Even when its hash was brought in line: here the manifest's own plan hides one site."""
    data = rewritten("trap")
    image_ = from_bytes(data, "out")
    section = image_.section(manifest.MANIFEST)
    assert section is not None
    found = manifest.parse(section.data, "out")
    for flip in range(1, 256):  # until the changed manifest is no longer than the room there is
        changed = bytearray(data)
        changed[image_.segments[0].file_offset + 0x400] ^= flip
        patched = found.header + bytes(changed[64 : found.original_size])
        body = replace(found, patched_sha256=hashlib.sha256(patched).hexdigest()).to_bytes()
        if len(body) <= section.size:
            break
    changed[section.file_offset : section.file_offset + len(body)] = body
    with pytest.raises(VerifyFailed, match="1 bytes differ"):
        check(image(), from_bytes(bytes(changed), "out"))


def test_another_original_and_a_swapped_pair_are_refused() -> None:
    out = from_bytes(rewritten(), "out")
    with pytest.raises(UsageError, match="was not made from"):
        check(from_bytes(kernel(sections=False), "other"), out)
    with pytest.raises(UsageError, match="rewritten image"):
        check(out, out)
    with pytest.raises(BadImage, match="no manifest"):
        check(image(), image())


def test_the_commands_go_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, out, back = (str(tmp_path / name) for name in ("kernel", "out", "back"))
    Path(source).write_bytes(kernel())
    run = CliRunner(catch_exceptions=False)

    def call(command: click.Command, *arguments: str) -> str:
        done = run.invoke(command, arguments, standalone_mode=False)
        assert done.exit_code == 0, done.output
        return str(done.output)

    listing = call(scan_command.command, source, "--class", "leaks", "--sites")
    assert "SGDT" in listing
    assert "MOV CR, r" not in listing
    assert len(json.loads(call(scan_command.command, source, "--json"))["sites"]) == len(scan(image()))
    assert "SGDT" in call(rewrite_commands.command, source, "--dry-run")
    assert not Path(out).exists()
    call(rewrite_commands.command, source, "-o", out, "--manifest", str(tmp_path / "plan.json"))
    assert json.loads((tmp_path / "plan.json").read_text())["mode"] == "auto"
    assert "pushfq" in call(diff_command.command, source, out)
    assert json.loads(call(diff_command.command, source, out, "--json"))["image"]["mode"] == "auto"
    call(rewrite_commands.revert_command, out, "-o", back)
    assert Path(back).read_bytes() == kernel()
    with pytest.raises(UsageError, match="no output"):
        call(rewrite_commands.command, source)
    with pytest.raises(UsageError, match="never overwritten"):
        call(rewrite_commands.command, source, "-o", source)
