"""`--kernel`: a fetched guest runs, and is verified, with another kernel than its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bt import guests
from bt.cli.main import run
from emulator.errors import UsageError

SAMPLE = Path(__file__).parents[3] / "samples" / "x86_64" / "sample.elf"


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest in the cache whose command line chooses some of the sample's checks, and whose kernel is none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = guests.cache_directory() / "debian-amd64"
    place.mkdir(parents=True)
    (place / "vmlinuz").write_bytes(b"no kernel")
    (place / "initrd").write_bytes(b"files")
    record = {"format": guests.FORMAT, "command_line": "only=tables.", "marker": "", "packages": {}, "sha256": {}}
    (place / "guest.json").write_text(json.dumps(record))


@pytest.mark.usefixtures("fetched")
def test_a_rewritten_kernel_runs_with_what_the_guest_brings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.elf"
    assert run(["rewrite", str(SAMPLE), "-o", str(out)]) == 0
    capfd.readouterr()
    assert run(["run", "debian-amd64", "--kernel", str(out), "--memory", "32M"]) == 0
    printed = capfd.readouterr().out
    assert "tables." in printed
    assert "ports." not in printed
    # In the mode of its plan; what the image itself calls volatile shows where interrupts came.
    assert run(["verify", "debian-amd64", "--kernel", str(out), "--memory", "32M"]) == 0, capfd.readouterr().out


@pytest.mark.usefixtures("fetched")
@pytest.mark.parametrize("command", ["run", "verify"])
def test_a_kernel_beside_a_file_is_refused(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([command, str(SAMPLE), "--kernel", str(SAMPLE)]) == UsageError.exit_status
    assert f"{SAMPLE} is a file" in capfd.readouterr().err


@pytest.mark.parametrize("mode", ["trap", "hypercall", "inline", "auto"])
@pytest.mark.parametrize("folder", ["x86_64", "i386"])
def test_a_sample_rewritten_in_any_mode_is_its_original(
    folder: str, mode: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    samples = SAMPLE.parents[1]
    out = tmp_path / "out.elf"
    assert run(["rewrite", str(samples / folder / "portable.elf"), "-o", str(out), "--mode", mode]) == 0
    capfd.readouterr()
    described = ["--manifest", str(samples / "portable" / "manifest.toml")]
    assert run(["verify", str(out), *described, "--append", "only=sensitive."]) == 0, capfd.readouterr().out
    assert f"{mode}: ended by debug-exit, status 0" in capfd.readouterr().out
