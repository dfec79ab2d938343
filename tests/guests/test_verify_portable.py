"""The portable sample on every instruction set, rewritten, does what it does on the bare machine."""

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
from emulator.native import NATIVES

PORTABLE = Path(__file__).parents[2] / "samples" / "portable"
MANIFEST: dict[str, Any] = tomllib.loads((PORTABLE / "manifest.toml").read_text())
FILES: dict[str, str] = {row["isa"]: row["file"] for row in MANIFEST["architecture"]}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("isa", FILES)
def test_the_portable_sample_is_the_reference_in_every_mode(isa: str) -> None:
    guest = of(load(PORTABLE / FILES[isa]))
    assert guest.volatile
    result = verify(guest, Options(memory=guest.memory, limits=Limits(host_seconds=280), cache=False))
    assert result.passed, text(result)
    assert result.reference.console == (PORTABLE / MANIFEST["console"]).read_bytes()
    assert result.reference.of("interrupt")
    assert result.reference.of("exception")
    assert as_json(result)["reference"]["full_privilege"] == (isa in NATIVES)
