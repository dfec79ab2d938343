"""A sample under the debugger, and its server spoken to by hand.

Room: tests. What the tests of gdb's stub share; nothing here claims anything.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from bt.gdb.monitor import Monitor
from bt.gdb.packets import packet
from bt.gdb.server import Server, listen
from bt.gdb.targets import target_for, translation
from bt.image import load
from bt.session import Options, Session
from paravirt.services.debug import Debugger

SAMPLE = Path(__file__).parents[3] / "samples/x86_64/sample.elf"
FOLDERS = ("x86_64", "i386", "aarch64", "armv7", "mips32")


class Opened:
    """A session and who debugs it."""

    def __init__(
        self, mode: str = "inline", *, reverse: bool = False, image: Path = SAMPLE, technique: str = ""
    ) -> None:
        self.console = bytearray()
        options = Options(mode=mode, memory=64 << 20, cache=False, technique=technique)
        self.session = Session(load(image), options, self.console.extend)
        self.target = target_for(self.session)
        self.debugger = Debugger(self.session.driver, translation(self.session), reverse=reverse)
        self.monitor = Monitor(self.session, self.debugger, self.target)
        self.listener = listen("127.0.0.1", 0)
        self.port: int = self.listener.getsockname()[1]
        self.server = Server(self.debugger, self.target, self.listener, self.monitor)

    def symbol(self, name: str) -> int:
        address = self.session.image.symbols.address_of(name)
        assert address is not None
        return address

    def close(self) -> None:
        self.listener.close()
        self.debugger.close()
        self.session.close()


@contextlib.contextmanager
def opened(
    mode: str = "inline", *, reverse: bool = False, image: Path = SAMPLE, technique: str = ""
) -> Iterator[Opened]:
    one = Opened(mode, reverse=reverse, image=image, technique=technique)
    try:
        yield one
    finally:
        one.close()


def ask(port: int, *payloads: bytes) -> list[bytes]:
    """Answers to packets, over a connection."""
    answers = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
        for payload in payloads:
            peer.sendall(packet(payload))
            data = b""
            while b"#" not in data or len(data) < data.index(b"#") + 3:
                data += peer.recv(65536)
            answers.append(data[data.index(b"$") + 1 : data.index(b"#")])
            peer.sendall(b"+")
    return answers
