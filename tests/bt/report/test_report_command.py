"""`retrap report`: every format of an image and of a manifest, to stdout and to a file."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from bt.cli import report as report_command
from bt.image import from_bytes, load
from bt.manifest import read
from bt.planner import plan
from bt.report.formats import FORMATS
from bt.report.json import dumps
from bt.rewrite import rewrite
from bt.scan import scan
from emulator.errors import BadImage, UsageError
from tests.bt.report.small_account import rewritten
from tests.bt.rewrite.small_kernel import addresses, kernel


def call(*arguments: str) -> str:
    done = CliRunner(catch_exceptions=False).invoke(report_command.command, arguments, standalone_mode=False)
    assert done.exit_code == 0, done.output
    return str(done.output)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "out").write_bytes(rewritten())
    return tmp_path / "out"


@pytest.fixture
def manifest(image: Path) -> Path:
    made = read(from_bytes(image.read_bytes(), "x"))
    assert made is not None
    (image.parent / "plan.json").write_text(dumps(made.plan.to_json()))
    return image.parent / "plan.json"


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_and_its_manifest_tell_the_same_sites(image: Path, manifest: Path, name: str, tmp_path: Path) -> None:
    for source in (image, manifest):
        report = call(str(source), "--format", name)
        assert f"{addresses()['sgdt']:x}" in report or name == "html"
        call(str(source), "--format", name, "-o", str(tmp_path / "report"))
        assert (tmp_path / "report").read_text() == report
    if name == "json":
        first, second = (json.loads(call(str(source), "--format", name)) for source in (image, manifest))
        assert first["sites"] == second["sites"]
        assert all(fixup["file_offset"] is not None for fixup in first["fixups"])
        assert [{**fixup, "file_offset": None} for fixup in first["fixups"]] == second["fixups"]


def test_the_text_tells_growth_tactics_and_every_site(image: Path) -> None:
    report = call(str(image))
    size = len(kernel())
    assert f"{size} bytes, rewritten {len(rewritten())}" in report
    for address in addresses().values():
        assert f"{address:016x}" in report


def test_an_original_and_a_damaged_image_are_refused(image: Path, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(kernel())
    with pytest.raises(UsageError, match=r"kernel: was not rewritten"):
        call(str(tmp_path / "kernel"))
    data = bytearray(image.read_bytes())
    data[0x400] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    with pytest.raises(BadImage, match="damaged: "):
        call(str(tmp_path / "damaged"))


def test_the_image_is_never_overwritten_by_its_report(image: Path) -> None:
    before = image.read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        call(str(image), "-o", str(image))
    assert image.read_bytes() == before


def test_source_lines_come_from_the_images_debug_data(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed; apt-get install gcc")
    (tmp_path / "kernel.c").write_text('void _start(void) {\n  for (;;)\n    __asm__ volatile("sgdt (%rsp)");\n}\n')
    flags = ["-g", "-O1", "-nostdlib", "-static", "-no-pie", "-fcf-protection=none", "-Wl,-Ttext=0x1000000"]
    command = [
        compiler,
        *flags,
        "-fno-pic",
        "-mcmodel=kernel",
        "-o",
        str(tmp_path / "kernel"),
        str(tmp_path / "kernel.c"),
    ]
    subprocess.run(command, check=True, timeout=60)
    original = load(tmp_path / "kernel")
    (tmp_path / "out").write_bytes(rewrite(original, plan(original, scan(original), "trap")))
    (site,) = json.loads(call(str(tmp_path / "out"), "--format", "json"))["sites"]
    assert (site["instruction"], site["source"]) == ("SGDT", "kernel.c:3")
    (result,) = json.loads(call(str(tmp_path / "out"), "--format", "sarif"))["runs"][0]["results"]
    (place,) = result["relatedLocations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "kernel.c"
    assert place["physicalLocation"]["region"]["startLine"] == 3
    assert "kernel.c:3" in call(str(tmp_path / "out"))
