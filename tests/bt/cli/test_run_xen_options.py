"""What `retrap run` refuses of a Xen guest, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bt.cli import run
from emulator.errors import UsageError


def refusal(*arguments: str) -> str:
    """The sentence with which a run is refused."""
    result = CliRunner().invoke(run.command, list(arguments))
    assert isinstance(result.exception, UsageError)
    return str(result.exception)


@pytest.mark.parametrize("service", [("--snapshot-at", "1s", "--to", "x"), ("--record", "x"), ("--warm",)])
def test_a_xen_guest_is_not_saved_and_the_sentence_says_why(service: tuple[str, ...], tmp_path: Path) -> None:
    image = tmp_path / "kernel"
    image.write_bytes(b"")
    assert "neither saved nor recorded" in refusal(str(image), "--virt", "xen", *service)


def test_shell_lines_are_for_fetched_guests(tmp_path: Path) -> None:
    image = tmp_path / "kernel"
    image.write_bytes(b"")
    assert "--run is for" in refusal(str(image), "--run", "echo")
