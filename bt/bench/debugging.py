"""What a debugger costs: gdb attached and idle, and breakpoints reached as gdb reaches them.

Room: measurements. The packets are those that gdb sends at every hit of a breakpoint that it goes on from; gdb's own
time is not in the figures.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from bt.bench.engine import Figure
from bt.gdb.packets import packet
from bt.gdb.server import Server, listen
from bt.gdb.targets import target_of, translation
from bt.guests import Guest
from bt.session import Session
from emulator.errors import Unavailable
from paravirt.services.debug import Debugger

HITS = 1000
_OFTEN = "kmem_cache_alloc"
"""A function of Linux that is called all the time."""

Cost = Callable[[Guest, bytes, int, Callable[[Session], Callable[[], None]]], float]
Open = Callable[[Guest, bytes], Session]


def _server(session: Session) -> tuple[Server, int]:
    target = target_of(session.machine.platform.isa)
    listener = listen("127.0.0.1", 0)
    debugger = Debugger(session.driver, translation(session))
    return Server(debugger, target, listener, lambda _: ""), listener.getsockname()[1]


def debugged(guest: Guest, initrd: bytes, runs: int, cost: Cost, open_session: Open) -> Iterator[Figure]:
    """Both figures."""

    def attach(session: Session) -> Callable[[], None]:
        server, port = _server(session)
        peer = socket.create_connection(("127.0.0.1", port))
        server._accept()

        def end() -> None:
            peer.close()
            server._drop("")
            server.listener.close()

        return end

    idle = cost(guest, initrd, runs, attach)
    yield Figure("gdb attached and idle", 100 * idle, 1, True, "%", "of a boot's processor time")
    session = open_session(guest, initrd)
    try:
        address = session.image.symbols.address_of(_OFTEN)
        if address is None:
            raise Unavailable(f"the guest's kernel has no {_OFTEN}; measure Debian's amd64 kernel")
        server, port = _server(session)
        seconds: list[float] = []
        client = threading.Thread(target=_hit, args=(port, address, seconds))
        client.start()
        server.serve()
        client.join()
    finally:
        session.close()
    yield Figure(f"{HITS} breakpoint hits", seconds[0], 1, True, "s", "each gone on from by a step, as gdb does")


def _hit(port: int, address: int, seconds: list[float]) -> None:
    """Be a gdb that reaches a breakpoint again and again."""
    point = b"0,%x,1" % address
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _ask(peer, b"QStartNoAckMode")
        peer.sendall(b"+")
        _ask(peer, b"Z" + point)
        _ask(peer, b"vCont;c")
        began = time.perf_counter()
        for _ in range(HITS):
            for payload in (b"g", b"z" + point, b"vCont;s:1", b"Z" + point, b"vCont;c"):
                _ask(peer, payload)
        seconds.append(time.perf_counter() - began)
        with suppress(OSError):
            peer.sendall(packet(b"k"))


def _ask(peer: Any, payload: bytes) -> None:
    peer.sendall(packet(payload))
    data = b""
    while data[-3:-2] != b"#":
        piece = peer.recv(65536)
        if not piece:
            raise Unavailable("the guest ended under its breakpoints; measure Debian's amd64 kernel")
        data += piece
