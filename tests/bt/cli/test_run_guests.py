"""`retrap run` with guests that behave: how they end, what is written about them, and the same result every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bt.cli.main import run
from emulator.errors import Timeout, VerifyFailed

SAMPLES = Path(__file__).parents[3] / "samples" / "x86_64"
HALT = SAMPLES / "hostile" / "halt.elf"
SHARED = SAMPLES / "hostile" / "shared-page.elf"
SPIN = SAMPLES / "hostile" / "spin.elf"
MODES = ("native", "none", "trap", "inline")


def result_of(tmp_path: Path, *arguments: str | Path, status: int = 0) -> dict[str, Any]:
    """The JSON of a run that ends with `status`."""
    file = tmp_path / "result.json"
    assert run(["run", *map(str, arguments), "--json", str(file)]) == status
    result: dict[str, Any] = json.loads(file.read_text())
    return result


@pytest.mark.parametrize("mode", MODES)
def test_a_halting_guest_ends_with_status_0_and_says_where(mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(HALT), "--virt", mode]) == 0
    out, err = capfd.readouterr()
    assert out == "hostile halt\n"
    assert err.startswith("retrap: the guest halted with interrupts disabled, at 0xffffffff81")
    assert "(attack" in err


@pytest.mark.parametrize("mode", MODES)
def test_the_guests_own_status_is_the_commands(mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The sample reports failures with status 1; without virtualisation the selector of its code segment is wrong."""
    sample, append = str(SAMPLES / "sample.elf"), "only=segments.mov-from-cs"
    status = run(["run", sample, "--virt", mode, "--memory", "32M", "--append", append])
    out, err = capfd.readouterr()
    assert status == (1 if mode == "none" else 0)
    assert out.endswith(f"retrap sample: 1 checks, {status} failed\n")
    assert err == ("retrap: the guest ended itself with status 1\n" if status else "")


@pytest.mark.parametrize("mode", MODES)
def test_a_run_repeats_exactly(mode: str, tmp_path: Path) -> None:
    arguments: list[str | Path] = [
        SAMPLES / "sample.elf",
        "--virt",
        mode,
        "--memory",
        "32M",
        "--append",
        "only=tables.",
    ]
    results, traces = [], []
    for number in range(2):
        trace = tmp_path / f"trace{number}"
        result = result_of(tmp_path, *arguments, "--trace", trace, status=int(mode == "none"))
        assert set(result.pop("host")) >= {"seconds"}
        results.append(result)
        traces.append(trace.read_bytes())
    assert results[0] == results[1]
    assert traces[0] == traces[1]


def test_all_ways_to_run_print_the_same(tmp_path: Path) -> None:
    arguments: list[str | Path] = [SAMPLES / "sample.elf", "--memory", "32M", "--append", "only=ports."]
    consoles = {result_of(tmp_path, *arguments, "--virt", mode)["console"]["sha256"] for mode in MODES}
    assert len(consoles) == 1


def test_until_ends_the_run_when_the_text_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(SPIN), "--until", "tile sp", "--timeout", "20"]) == 0
    assert capfd.readouterr() == ("hostile sp", "")


def test_until_fails_when_the_guest_ends_before(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(HALT), "--until", "welcome"]) == VerifyFailed.exit_status
    assert "the guest ended (halted) and had not printed 'welcome'" in capfd.readouterr().err


def test_guest_time_is_a_limit_that_holds_exactly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = result_of(tmp_path, SPIN, "--guest-timeout", "0.01", status=Timeout.exit_status)
    assert result["outcome"]["kind"] == "guest-timeout"
    assert 10_000_000 <= result["guest_nanoseconds"] < 10_001_000
    assert "within 0.01 s of guest time" in capfd.readouterr().err


def test_the_exit_table_goes_to_stderr_with_times(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(SHARED), "--memory", "128M", "--exits"]) == 0
    out, err = capfd.readouterr()
    assert out == "hostile shared-page\ndone\n"
    assert "WRITE_PORT" in err
    assert "µs each" in err
    assert "pages scanned" in err


def test_the_json_says_what_the_exit_table_counts(tmp_path: Path) -> None:
    result = result_of(tmp_path, SHARED, "--memory", "128M", "--virt", "trap")
    assert result["exits_total"] == sum(row["count"] for row in result["exits"])
    assert {row["route"] for row in result["exits"]} >= {"exit", "trap", "fill"}
    assert not any("seconds" in row for row in result["exits"])
    assert result["console"]["bytes"] == len("hostile shared-page\ndone\n")


def test_a_run_without_cache_scans_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert result_of(tmp_path, SHARED, "--memory", "128M", "--no-cache")["host"]["pages_scanned"] > 0
    assert not list((tmp_path / "cache").rglob("*"))
