"""`retrap debug` as its user has it: what it refuses, and whose the terminal is."""

from __future__ import annotations

import re
import socket
import termios
import time
from pathlib import Path

import pytest

from bt.cli.main import run
from bt.gdb.packets import packet
from emulator.engine.engines import X86_ENGINES
from emulator.errors import EngineMissing
from tests.bt.cli.test_run_terminal import PATIENCE, RETRAP, SPIN, OnTerminal

SAMPLE = Path(__file__).parents[3] / "samples" / "x86_64" / "sample.elf"


class Debugged(OnTerminal):
    """The command on a terminal of its own, and gdb's end of the connection."""

    command = (*RETRAP[:-1], "debug")

    def __init__(self, *arguments: str | Path) -> None:
        super().__init__(*arguments)
        self.wait_for(b"target remote 127.0.0.1:")
        self.wait_for(b"'\r\n")
        found = re.search(rb"127\.0\.0\.1:(\d+)", self.shown)
        assert found is not None
        self.gdb = socket.create_connection(("127.0.0.1", int(found[1])), timeout=PATIENCE)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def close(self) -> None:
        self.gdb.close()
        super().close()


def test_what_is_typed_goes_to_a_guest_that_runs_and_ctrl_a_x_ends_it() -> None:
    terminal = Debugged(SPIN, "--console", "--port", "0")
    try:
        assert not terminal.is_raw(), "while the guest stands, Ctrl-C ends the command"
        terminal.gdb.sendall(packet(b"vCont;c"))
        terminal.wait_for(b"hostile spin\r\n")
        assert terminal.is_raw()
        terminal.gdb.sendall(b"\x03")
        data = b""
        while b"T02" not in data:
            data += terminal.gdb.recv(4096)
        deadline = time.monotonic() + PATIENCE
        while terminal.is_raw() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not terminal.is_raw()
        terminal.gdb.sendall(b"+" + packet(b"vCont;c"))
        while not terminal.is_raw() and time.monotonic() < deadline:
            time.sleep(0.01)
        terminal.type(b"\x01x")
        data = b""
        while b"W00" not in data:
            data += terminal.gdb.recv(4096)
        assert terminal.end() == 0
    finally:
        terminal.close()


def test_a_guest_of_xen_has_no_history_and_is_told_so(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["debug", str(SAMPLE), "--virt", "xen", "--reverse", "--port", "0"]) == 2
    assert capfd.readouterr().err.startswith("retrap: ")


@pytest.mark.kvm
def test_an_engine_that_cannot_stop_at_an_instruction_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        X86_ENGINES["kvm"]().close()
    except EngineMissing as error:
        pytest.skip(str(error))
    assert run(["debug", str(SAMPLE), "--engine", "kvm", "--port", "0"]) == 2
    assert "the kvm engine cannot stop at an instruction of x86-64 guests; take --engine unicorn" in (
        capfd.readouterr().err
    )


def test_a_port_in_use_is_one_sentence_and_loopback_is_the_default(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["debug", str(SAMPLE), "--port", str(port)]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"retrap: 127.0.0.1:{port}: cannot be listened at (")
    assert error.endswith("give another --port")


@pytest.mark.parametrize("address", ["127.0.0.1:1234", "no.such.host.invalid", "x" * 300, "a\u0300..b", ""])
def test_an_address_that_cannot_be_listened_at_is_one_sentence(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["debug", str(SAMPLE), "--listen", address, "--port", "0"]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"retrap: --listen {address}: is no address of this host; ")
    assert "Errno" not in error
