"""`retrap run` on a terminal, on pipes and under signals: through the real process, as its user has it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bt import guests
from emulator.errors import Unavailable

SAMPLES = Path(__file__).parents[3] / "samples" / "x86_64"
SPIN = SAMPLES / "hostile" / "spin.elf"
HALT = SAMPLES / "hostile" / "halt.elf"
RETRAP = [sys.executable, "-m", "bt", "run"]
PATIENCE = 30.0


class OnTerminal:
    """The command with a terminal of its own, and what appeared on it."""

    command: tuple[str, ...] = tuple(RETRAP)

    def __init__(self, *arguments: str | Path) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.shown = b""
        command = [*self.command, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=self.slave, stdout=self.slave, stderr=self.slave, preexec_fn=self._take_terminal
        )

    def _take_terminal(self) -> None:
        os.setsid()
        import fcntl

        fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)

    def wait_for(self, text: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.shown:
            ready = select.select([self.master], [], [], deadline - time.monotonic())[0]
            assert ready, f"{text!r} did not come; shown: {self.shown!r}"
            self.shown += os.read(self.master, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """Exit status, after which the terminal must be as it was."""
        try:
            while self.process.poll() is None:
                if select.select([self.master], [], [], 0.1)[0]:
                    self.shown += os.read(self.master, 4096)
            return self.process.wait(PATIENCE)
        finally:
            assert termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def spinning() -> Iterator[OnTerminal]:
    terminal = OnTerminal(SPIN, "--timeout", "60", "--exits")
    terminal.wait_for(b"hostile spin\r\n")
    yield terminal
    terminal.close()


def is_raw(terminal: OnTerminal) -> bool:
    return not termios.tcgetattr(terminal.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


def test_ctrl_a_x_ends_the_run_and_gives_the_terminal_back(spinning: OnTerminal) -> None:
    assert is_raw(spinning)
    assert b"Ctrl-A x ends the run" in spinning.shown
    spinning.type(b"\x01x")
    assert spinning.end() == 0
    assert b"in all" in spinning.shown


def test_ctrl_c_belongs_to_the_guest(spinning: OnTerminal) -> None:
    spinning.type(b"\x03")
    time.sleep(0.5)
    assert spinning.process.poll() is None
    spinning.type(b"\x01h")
    spinning.wait_for(b"end the run\r\n")
    spinning.type(b"\x01x")
    assert spinning.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_the_run_and_gives_the_terminal_back(spinning: OnTerminal, number: signal.Signals) -> None:
    spinning.process.send_signal(number)
    assert spinning.end() == 128 + number
    assert b"retrap: interrupted" in spinning.shown
    assert b"in all" in spinning.shown


def test_a_stopped_run_gives_the_terminal_back_until_it_goes_on(spinning: OnTerminal) -> None:
    spinning.process.send_signal(signal.SIGTSTP)
    os.waitid(os.P_PID, spinning.process.pid, os.WSTOPPED | os.WNOWAIT)
    assert not is_raw(spinning)
    spinning.process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + PATIENCE
    while not is_raw(spinning):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    spinning.type(b"\x01x")
    assert spinning.end() == 0


def test_an_error_gives_the_terminal_back() -> None:
    terminal = OnTerminal(SAMPLES / "hostile" / "triple-fault.elf")
    try:
        assert terminal.end() == 4
        assert b"retrap: the guest is lost at" in terminal.shown
    finally:
        terminal.close()


def start(*arguments: str | Path, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*RETRAP, *map(str, arguments)], **streams)


def test_an_interrupt_off_the_terminal_ends_with_status_130_the_exit_table_and_the_files(tmp_path: Path) -> None:
    trace, result = tmp_path / "trace", tmp_path / "result.json"
    process = start(
        SAMPLES / "hostile" / "spin-with-exits.elf",
        *("--exits", "--trace", trace, "--json", result, "--timeout", "60"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"hostile spin-with-exits\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert b"retrap: interrupted\n" in err
    assert b"in all" in err
    assert b"Traceback" not in err
    outcome = json.loads(result.read_text())
    assert outcome["outcome"]["kind"] == "interrupted"
    assert int(trace.read_text().splitlines()[-1].split()[0]) <= outcome["progress"]


def test_a_killed_run_leaves_every_line_of_its_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    process = start(
        SAMPLES / "hostile" / "spin-with-exits.elf",
        *("--trace", trace, "--timeout", "60"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=PATIENCE)
    lines = trace.read_bytes().splitlines(keepends=True)
    assert len(lines) > 100
    assert all(line.endswith(b"\n") and line.split()[1] == b"cpl" for line in lines)


def test_no_streams_at_all_are_no_error() -> None:
    command = " ".join([*RETRAP, str(HALT), "0<&-", "1>&-", "2>&-"])
    assert subprocess.run(["sh", "-c", command], timeout=PATIENCE, check=False).returncode == 0


def test_a_reader_that_goes_away_ends_the_run_quietly() -> None:
    process = start(SPIN, "--timeout", "60", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(PATIENCE) == 0


def test_a_job_in_the_background_does_not_touch_the_terminal() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = start(HALT, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, _ = process.communicate(timeout=PATIENCE)
    assert out == b"hostile halt\n"
    assert process.returncode == 0
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


@pytest.mark.kernel
@pytest.mark.slow
def test_a_script_on_stdin_reaches_the_shell_of_a_stock_kernel() -> None:
    """Piped in before the kernel has even started: nothing of it is lost while its driver probes the port."""
    try:
        guest = guests.find("debian-amd64")
    except Unavailable as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [*RETRAP, "debian-amd64", "--append", f"{guest.command_line} quiet rdinit=/bin/sh", "--timeout", "200"],
        input=b"echo sum $((40+2))\nbusybox poweroff -f\n",
        capture_output=True,
        check=False,
    )
    assert b"\nsum 42\r\n" in done.stdout
    assert done.returncode == 0, done.stderr
