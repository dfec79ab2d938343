"""The sample kernel: every check passes at full privilege and rewritten; not virtualised, those fail that must."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).parents[2] / "samples"
MANIFEST: dict[str, Any] = tomllib.loads((SAMPLES / "manifest.toml").read_text())
SAMPLE = next(guest for guest in MANIFEST["guest"] if guest["name"] == "sample")
EXPECTED = (SAMPLES / SAMPLE["console"]).read_bytes()
PATIENCE = 600
"""Seconds for a run beside other work; the manifest's time is an idle machine's."""
FEWER = "--append", "rounds=500"
"""Of each form of self-modifying code; all ten thousand are tried by rewritten code, which has the most fast paths."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PATIENCE + 30)]


def run(mode: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    """The finished `retrap run` of the sample."""
    command = [sys.executable, "-m", "bt", "run", str(SAMPLES / SAMPLE["file"]), "--virt", mode]
    command += ["--memory", f"{SAMPLE['memory']}M", "--timeout", str(PATIENCE), *options]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def names(console: bytes, result: str) -> set[str]:
    """The checks whose line begins with `result`."""
    return set(re.findall(rf"^{result} ([\w.-]+)", console.decode(), re.MULTILINE))


@pytest.mark.parametrize("mode", ["native", "trap", "inline"])
def test_the_sample_prints_what_a_real_processor_has_it_print(mode: str) -> None:
    done = run(mode, *(FEWER if mode != "inline" else ()))
    assert names(done.stdout, "FAIL") == set()
    assert done.stdout == EXPECTED
    assert done.returncode == SAMPLE["status"] == 0
    assert done.stderr == b""


def listed(table: str) -> set[str]:
    """The checks of one of the manifest's tables."""
    return {name for checks in SAMPLE[table].values() for name in checks}


def test_not_virtualised_exactly_the_listed_checks_fail() -> None:
    done = run("none", *FEWER)
    failed = names(done.stdout, "FAIL")
    assert failed - listed("watches") == listed("negative_controls") | listed("consequences")
    assert failed | names(done.stdout, "ok") == names(EXPECTED, "ok")
    assert done.returncode == 1
    assert done.stderr == b"retrap: the guest ended itself with status 1\n"


@pytest.mark.parametrize("mode", ["trap", "inline"])
def test_every_negative_control_passes_when_rewritten(mode: str) -> None:
    """The same checks one by one: each is chosen on the kernel's command line."""
    for checks in SAMPLE["negative_controls"].values():
        for name in checks:
            done = run(mode, "--append", f"only={name}")
            assert done.stdout.endswith(b"retrap sample: 1 checks, 0 failed\n"), name
            assert done.returncode == 0
