"""Hostile guests through the command: each ends as the manifest says, with one sentence and the status of its kind."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from emulator.errors import GuestFault, Timeout

SAMPLES = Path(__file__).parents[2] / "samples"
MANIFEST: dict[str, Any] = tomllib.loads((SAMPLES / "manifest.toml").read_text())
HOSTILE = {guest["name"]: guest for guest in MANIFEST["guest"] if guest["kind"] == "hostile"}
ENDLESS = ("spin", "spin-with-exits", "fault-loop")
LOST = ("triple-fault", "error")
"""Outcomes of a guest that is lost; "error" where the engine itself cannot follow it."""


def run(
    name: str, mode: str, result: Path, *options: str, host: int = 10
) -> tuple[subprocess.CompletedProcess[bytes], dict[str, Any]]:
    """The finished process and its JSON result."""
    guest = HOSTILE[name]
    command = [sys.executable, "-m", "bt", "run", str(SAMPLES / guest["file"]), "--virt", mode]
    command += ["--memory", f"{guest['memory']}M", "--timeout", str(host), "--json", str(result), *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False)
    return done, json.loads(result.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["native", "trap", "inline"])
@pytest.mark.parametrize("name", sorted(set(HOSTILE) - set(ENDLESS)))
def test_a_hostile_guest_ends_as_the_manifest_says(name: str, mode: str, tmp_path: Path) -> None:
    guest = HOSTILE[name]
    host = 3 if "host-timeout" in guest["outcome"] else 60
    done, result = run(name, mode, tmp_path / "result.json", host=host)
    sentences = done.stderr.decode().splitlines()
    kind = result["outcome"]["kind"]
    assert b"Traceback" not in done.stderr
    assert kind in guest["outcome"] or ("triple-fault" in guest["outcome"] and kind in LOST)
    if "console_text" in guest:
        assert done.stdout.decode() == guest["console_text"]
    wanted = {**dict.fromkeys(LOST, GuestFault.exit_status), "host-timeout": Timeout.exit_status}
    assert done.returncode == result["outcome"]["exit_status"] == wanted.get(kind, guest["status"])
    if done.returncode:
        assert len(sentences) == 1
        assert sentences[0].startswith("retrap: ")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["native", "none", "trap", "inline"])
@pytest.mark.parametrize("name", ENDLESS)
def test_the_hosts_time_limit_ends_a_guest_that_keeps_the_processor(name: str, mode: str, tmp_path: Path) -> None:
    done, result = run(name, mode, tmp_path / "result.json", host=1)
    assert done.returncode == Timeout.exit_status
    assert b"the guest did not end within 1 s of host time; it was at 0xffffffff81" in done.stderr
    assert done.stdout.decode() == HOSTILE[name]["console_text"]
    assert result["host"]["seconds"] < 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDLESS)
def test_guest_time_ends_a_guest_at_the_same_place_every_time(name: str, tmp_path: Path) -> None:
    ends = []
    for number in range(2):
        done, result = run(name, "inline", tmp_path / f"{number}.json", "--guest-timeout", "0.002", host=60)
        assert done.returncode == Timeout.exit_status
        assert b"within 0.002 s of guest time" in done.stderr
        del result["host"]
        ends.append((result, done.stderr))
    assert ends[0] == ends[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["triple-fault", "jump-unmapped", "tables-nonsense", "spin"])
def test_the_trace_has_every_exit_to_the_last(name: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    _, result = run(name, "inline", tmp_path / "result.json", "--trace", str(trace), host=3)
    lines = trace.read_text().splitlines()
    events = sum(row["count"] for row in result["exits"] if row["route"] != "injection")
    # An exit that delivers no operation of its own (a step's end, a retried page fault) is a line and no count.
    assert len(lines) >= events
    progress = [int(line.split()[0]) for line in lines]
    assert progress == sorted(progress)
    if name != "spin":
        assert progress[-1] == result["progress"]
    assert trace.read_bytes().endswith(b"\n")
