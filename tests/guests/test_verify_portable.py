"""The portable sample on every instruction set, rewritten, does what it does on the bare machine.

The checks of self-modifying code, 10 000 rounds each, are left to `test_portable_sample`, which holds their consoles.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from bt.image import load
from bt.session import Options
from bt.verify import verify
from bt.verify.guest import of
from bt.verify.report import as_json, text
from emulator.machine import Limits

PORTABLE = Path(__file__).parents[2] / "samples" / "portable"
MANIFEST: dict[str, Any] = tomllib.loads((PORTABLE / "manifest.toml").read_text())
FILES: dict[str, str] = {row["isa"]: row["file"] for row in MANIFEST["architecture"]}
GROUPS = {"sensitive.": "", "paging.": "exception", "interrupts.queued": "interrupt", "user.": "system call"}
"""Of its checks, by the beginning of their names, and what must have happened in them."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("isa", FILES)
def test_the_portable_sample_is_the_reference_in_every_mode(isa: str, group: str) -> None:
    guest = of(load(PORTABLE / FILES[isa]))
    assert guest.volatile
    limits = Limits(host_seconds=280)
    options = Options(memory=guest.memory, command_line=f"only={group}", limits=limits, cache=False)
    result = verify(guest, options)
    assert result.passed, text(result)
    console = result.reference.console.decode()
    assert f"ok {group}" in console
    assert "FAIL" not in console
    assert result.reference.of(GROUPS[group]) or not GROUPS[group]
    assert as_json(result)["reference"]["full_privilege"]
