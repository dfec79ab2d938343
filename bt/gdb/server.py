"""gdb's remote protocol, served: one gdb at a time, one guest, whose virtual CPU is its one thread.

Room: `bt/gdb`. The guest runs in this process and thread; while it does, the connection is looked at when the machine
asks whether to stop, so that a gdb that is attached and waits costs nothing. Nothing that a gdb does, and no way to
disappear, harms the guest: it stays where it is, and the next gdb may come.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from bt.gdb.answers import Answers, Detached, Killed
from bt.gdb.packets import Kind, Reader, packet
from bt.gdb.targets import Target
from emulator.errors import UsageError
from emulator.machine import Outcome
from paravirt.services.debug import Debugger

_PATIENCE: Final = 10.0
"""Seconds that a gdb may take to read what it is sent."""
_LOOKED_FOR: Final = 500_000
"""Nanoseconds in which gdb's next packet mostly comes."""
_BUSY: Final = b"E.another gdb is attached to this guest; detach it first"


class Gone(Exception):
    """The connection is not there any more."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that a gdb can connect to. Raises `UsageError` where it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, OverflowError, UnicodeError):
        raise UsageError(
            f"--listen {host}: is no address of this host; give a name or an address without a port, which is --port"
        ) from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(4)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{host}:{port}: cannot be listened at ({reason}); give another --port") from None
    return listener


class Server(Answers):
    """One guest for one gdb after another."""

    def __init__(
        self,
        debugger: Debugger,
        target: Target,
        listener: socket.socket,
        monitor: Callable[[str], str],
        say: Callable[[str], None] = lambda _: None,
        running: contextlib.AbstractContextManager[object] | None = None,
    ) -> None:
        """`monitor` does a command of gdb's `monitor` and gives its answer; `say` tells people what happens; `running`
        is entered whenever the guest runs: a terminal is the guest's only then."""
        super().__init__(debugger, target, monitor, say, running)
        self.listener = listener
        self._peer: socket.socket | None = None
        self._waiting: list[tuple[Kind, bytes]] = []
        self._answer = b""
        before = self.driver.machine.stop_when
        self.driver.machine.stop_when = lambda: self._poll() or (before is not None and before())

    # -- the whole ------------------------------------------------------------------------------

    def serve(self) -> Outcome | None:
        """Serve until the guest has ended, or a gdb has ended it (None)."""
        try:
            while self._outcome is None:
                self._accept()
                try:
                    self._session()
                except (Gone, OSError):
                    self._drop("gdb is gone; the guest waits where it is for another")
                except Detached:
                    self._drop("gdb has detached; the guest goes on")
                    self._remove_all()
                    self._run(self.debugger.go)
                except Killed:
                    self._drop("gdb has ended the guest")
                    return None
            return self._outcome
        finally:
            self._drop("")
            self.listener.close()

    def _accept(self) -> None:
        if self._peer is None:
            peer, _ = self.listener.accept()
            self._take(peer)

    def _take(self, peer: socket.socket) -> None:
        peer.settimeout(_PATIENCE)
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer, self._reader, self._waiting, self._acknowledge = peer, Reader(), [], True

    def _drop(self, sentence: str) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None
            self._remove_all()
            if sentence:
                self.say(sentence)

    def _remove_all(self) -> None:
        self.debugger.stops.clear()

    # -- bytes ----------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        if self._peer is None:
            raise Gone
        self._peer.sendall(data)

    def _reply(self, payload: bytes) -> None:
        self._answer = packet(payload)
        self._send(self._answer)

    def _receive(self) -> None:
        """Take what has come."""
        if self._peer is None:
            raise Gone
        data = self._peer.recv(65536)
        if not data:
            raise Gone
        self._waiting += self._reader.feed(data)

    def _next(self) -> tuple[Kind, bytes]:
        while not self._waiting:
            peer = self._peer
            if peer is None:
                raise Gone
            ready = self._ready([peer, self.listener])
            if peer in ready:
                self._receive()
            elif self.listener in ready:
                self._turn_away()
        return self._waiting.pop(0)

    @staticmethod
    def _ready(readers: list[socket.socket]) -> list[socket.socket]:
        """Which of these can be read, when one can. gdb's next packet mostly comes at once, and to wake a processor
        that sleeps takes longer: so it is looked for awhile first."""
        until = time.perf_counter_ns() + _LOOKED_FOR
        ready: list[socket.socket] = []
        while not ready and time.perf_counter_ns() < until:
            ready, _, _ = select.select(readers, [], [], 0)
        return ready or select.select(readers, [], [])[0]

    def _turn_away(self) -> None:
        """A second gdb: tell it so, and let it go."""
        with contextlib.suppress(OSError):
            other, _ = self.listener.accept()
            with other:
                other.settimeout(1.0)
                other.sendall(b"+" + packet(_BUSY))
            self.say("a second gdb was turned away")

    def _poll(self) -> bool:
        """Called while the guest runs: whether a gdb wants it to stop."""
        readers = [self.listener] if self._peer is None else [self.listener, self._peer]
        ready, _, _ = select.select(readers, [], [], 0)
        if not ready:
            return False
        if self._peer is None:
            self._take(self.listener.accept()[0])
            self.debugger.stops.ask()
            return True
        if self._peer not in ready:
            self._turn_away()
            return False
        try:
            self._receive()
        except (Gone, OSError):
            self.debugger.stops.ask()
            self._drop("gdb is gone; the guest waits where it is for another")
            return True
        if any(kind is Kind.INTERRUPT for kind, _ in self._waiting):
            self._waiting = [one for one in self._waiting if one[0] is not Kind.INTERRUPT]
            self.debugger.stops.ask()
            return True
        return False

    # -- a gdb ----------------------------------------------------------------------------------

    def _session(self) -> None:
        while self._outcome is None:
            kind, payload = self._next()
            if kind is Kind.AGAIN:
                self._send(self._answer)
            elif kind is Kind.DAMAGED:
                self._send(b"-")
            elif kind is Kind.INTERRUPT:
                self._reply(self._stopped(self._last))
            else:
                if self._acknowledge:
                    self._send(b"+")
                answer = self.answer(payload)
                if answer is not None:
                    self._reply(answer)
