"""Progress: shown on a terminal after a second, nowhere else, and gone when the work is done."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bt import progress

SLOW = """
import time
from pathlib import Path
from bt import progress
with progress.stage("counting [b]sheep[/b]", 40) as step:
    while shown():
        step(1)
        time.sleep(0.05)
print("done")
"""
WAIT = "shown = lambda t=time.monotonic(): time.monotonic() - t < {}"


def program(seconds: float) -> str:
    return SLOW.replace("from bt import progress\n", f"from bt import progress\n{WAIT.format(seconds)}\n")


def on_terminal(code: str, environment: dict[str, str]) -> bytes:
    """All that a program writes to a terminal."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=child,
        stderr=child,
        env={**os.environ, **environment},
    )
    os.close(child)
    written, ends = b"", time.monotonic() + 60
    while time.monotonic() < ends and select.select([parent], [], [], 60)[0]:
        try:
            chunk = os.read(parent, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(parent)
    assert process.wait(60) == 0, written
    return written


def test_what_takes_long_is_shown_on_a_terminal_and_cleared_away() -> None:
    written = on_terminal(program(2.5), {"TERM": "xterm-256color", "COLUMNS": "100"})
    assert b"counting [b]sheep[/b]" in written
    assert b"%" in written
    assert b"\x1b[2K" in written  # the line is erased
    assert written.rstrip().endswith(b"done")


def test_what_is_done_at_once_shows_nothing() -> None:
    assert on_terminal(program(0.05), {"TERM": "xterm-256color"}) == b"done\r\n"


def test_a_terminal_that_can_show_no_bar_gets_none() -> None:
    assert on_terminal(program(1.5), {"TERM": "dumb"}) == b"done\r\n"


def test_nothing_is_shown_where_there_is_no_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", program(1.5)], capture_output=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (b"done\n", b"")


def test_a_stage_within_a_stage_and_an_error_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_on_terminal", lambda: True)

    def broken() -> None:
        with progress.stage("outer"), progress.stage("inner", 3) as step:
            step(1)
            assert progress._current is not None
            assert progress._current.title == "outer"
            raise KeyError("broken")

    with pytest.raises(KeyError):
        broken()
    assert progress._current is None
    with progress.stage("again"):
        assert progress._current is not None


def test_progress_alone_imports_nothing_heavy() -> None:
    code = "import sys; from bt import progress; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


COMMANDS = """
import sys, threading, types
from bt import progress

class Now:  # a second has passed at once
    def __init__(self, seconds, show):
        self.start, self.cancel = show, lambda: None

progress.threading = types.SimpleNamespace(Timer=Now, Lock=threading.Lock)
from bt.cli.main import run
for line in {lines!r}:
    assert run(line.split()) in (0, 1), line
"""
SAMPLE = Path(__file__).parents[3] / "samples" / "x86_64" / "portable.elf"


def commands(at: Path) -> list[str]:
    """Everything that reads, scans, rewrites, reports and runs; outputs are in the directory `at`."""
    return [
        f"scan {SAMPLE} --no-cache",
        f"rewrite {SAMPLE} --no-cache -o {at}/out --manifest {at}/plan --report json {at}/report",
        f"check {at}/out",
        f"revert {at}/out -o {at}/original",
        f"apply {at}/plan {SAMPLE} -o {at}/again",
        f"report {at}/out -o {at}/page --format html",
        f"diff {at}/out {at}/plan",
        f"export {at}/out --to rizin -o {at}/script",
        f"run {at}/out --no-cache --until portable",
        "isa mips32 --prove",
    ]


TITLES = (
    "reading", "scanning", "planning", "rewriting", "reporting", "checking", "reverting", "applying", "making the html",
    "comparing", "loading", "running the rows of mips32",
)  # fmt: skip


def test_every_step_of_every_command_shows_itself_on_a_terminal_and_is_cleared_away(tmp_path: Path) -> None:
    written = on_terminal(COMMANDS.format(lines=commands(tmp_path)), {"TERM": "xterm-256color", "COLUMNS": "300"})
    for title in TITLES:
        assert title.encode() in written, title
    assert written.count(b"\x1b[2K") >= len(TITLES)


def test_no_command_shows_progress_where_there_is_no_terminal(tmp_path: Path) -> None:
    code = COMMANDS.format(lines=commands(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert b"\x1b[2K" not in done.stdout
