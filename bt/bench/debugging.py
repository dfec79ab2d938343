"""What a debugger costs: gdb attached and idle, and breakpoints reached by gdb.

Room: measurements. Idle: a boot with a gdb and one without must be the same to the exit, so that looking at the
connection is all that it costs; that is timed by itself, since two boots differ by more than it in the host's mood.
Hits: gdb itself where there is one, and otherwise a process that sends what gdb sends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from bt.bench.engine import Figure
from bt.gdb.packets import packet
from bt.gdb.server import Server, listen
from bt.gdb.targets import target_of, translation
from bt.guests import Guest
from bt.session import Session
from emulator.errors import Unavailable, VerifyFailed
from paravirt.services.breakpoints import Stop
from paravirt.services.debug import Debugger
from paravirt.services.timeline import PAUSED

if TYPE_CHECKING:
    from paravirt.hypervisor import Hypervisor

HITS = 1000
_OFTEN = "kmem_cache_alloc"
"""A function of Linux that is called all the time."""

Open = Callable[[Guest, bytes], Session]


def _server(session: Session) -> tuple[Server, int]:
    target = target_of(session.machine.platform.isa)
    listener = listen("127.0.0.1", 0)
    debugger = Debugger(session.driver, translation(session))
    return Server(debugger, target, listener, lambda _: ""), listener.getsockname()[1]


def debugged(guest: Guest, initrd: bytes, runs: int, open_session: Open, until: int) -> Iterator[Figure]:
    """Both figures; the first of a boot of `until` blocks."""
    plain, attached = (_boot(guest, initrd, open_session, until, attached=one) for one in (False, True))
    if plain.exits != attached.exits or plain.state != attached.state:
        raise VerifyFailed(f"a gdb that waits changes the guest: {attached.exits} exits are not {plain.exits}")
    share = attached.looking / attached.seconds
    detail = (
        f"{attached.looks} looks at the connection in a boot of {attached.seconds:.2f} s of processor time, "
        "which is the same to the exit and the register"
    )
    yield Figure("gdb attached and idle", 100 * share, 1, True, "%", detail)
    hits = [_hits(guest, initrd, open_session) for _ in range(runs)]
    seconds, spent, client = min(hits)
    detail = f"each gone on from by a step, by {client}; {spent:.2f} s of processor time here, the guest's own included"
    yield Figure(f"{HITS} breakpoint hits", seconds, 1, True, "s", detail)


class _Boot(NamedTuple):
    """A boot, and what was spent in it."""

    exits: int
    state: Any
    seconds: float
    """Processor time."""
    looking: float
    """Of that, for a gdb that might have sent something."""
    looks: int


def _boot(guest: Guest, initrd: bytes, open_session: Open, until: int, *, attached: bool) -> _Boot:
    """Boot for some blocks, with a gdb that waits or without one."""
    session = open_session(guest, initrd)
    driver, machine = cast("Hypervisor", session.driver), session.machine
    looking, looks = 0.0, 0
    with contextlib.ExitStack() as stack:
        stack.callback(session.close)
        if attached:
            server, port = _server(session)
            stack.callback(server.listener.close)
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            server._accept()
            stack.callback(server._drop, "")
            asked = machine.stop_when
            assert asked is not None

            def timed() -> bool:
                nonlocal looking, looks
                began = time.thread_time()
                stop = asked()
                looking, looks = looking + time.thread_time() - began, looks + 1
                return stop

            machine.stop_when = timed
        machine.begin()
        machine.arm()
        machine.engine.pause_at(until, lambda: driver.end(PAUSED))
        began = time.process_time()
        outcome = driver.resume()
        seconds = time.process_time() - began
        if outcome is not PAUSED:
            raise Unavailable(f"the guest ended before {until} blocks; measure Debian's amd64 kernel")
        return _Boot(driver.exits.total, driver.state, seconds, looking, looks)


def _hits(guest: Guest, initrd: bytes, open_session: Open) -> tuple[float, float, str]:
    """Seconds from the first hit to the one that is `HITS` behind it, processor seconds of this process in them, and
    who the debugger was."""
    session = open_session(guest, initrd)
    try:
        address = session.image.symbols.address_of(_OFTEN)
        if address is None:
            raise Unavailable(f"the guest's kernel has no {_OFTEN}; measure Debian's amd64 kernel")
        server, port = _server(session)
        marks: list[tuple[float, float]] = []
        go = server.debugger.go

        def timed() -> Stop:
            stop = go()
            marks.append((time.perf_counter(), time.process_time()))
            return stop

        server.debugger.go = timed  # type: ignore[method-assign]
        gdb = shutil.which("gdb")
        if gdb is None:
            context = multiprocessing.get_context("spawn")
            client: Any = context.Process(target=_hit, args=(port, address))
            client.start()
            server.serve()
            client.join()
        else:
            # gdb passes over hits that are to be ignored as over any other, but prints nothing.
            lines = (f"target remote 127.0.0.1:{port}", f"break *{address:#x}", f"ignore 1 {HITS}", "continue", "kill")
            command = (gdb, "-nx", "-q", "-batch", *(word for line in lines for word in ("-ex", line)))
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
                server.serve()
    finally:
        session.close()
    if len(marks) <= HITS:
        raise Unavailable(f"the guest ended under its breakpoints after {len(marks)}; measure Debian's amd64 kernel")
    wall, spent = (marks[HITS][at] - marks[0][at] for at in range(2))
    return wall, spent, "gdb" if gdb else "a client that sends gdb's packets"


def _hit(port: int, address: int) -> None:
    """Be a gdb that reaches a breakpoint again and again."""
    point = b"0,%x,1" % address
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _ask(peer, b"QStartNoAckMode")
        peer.sendall(b"+")
        _ask(peer, b"Z" + point)
        _ask(peer, b"vCont;c")
        for _ in range(HITS):
            for payload in (b"z" + point, b"vCont;s:1", b"Z" + point, b"vCont;c"):
                _ask(peer, payload)
        with contextlib.suppress(OSError):
            peer.sendall(packet(b"k"))


def _ask(peer: Any, payload: bytes) -> None:
    peer.sendall(packet(payload))
    data = b""
    while data[-3:-2] != b"#":
        piece = peer.recv(65536)
        if not piece:
            raise Unavailable("the guest ended under its breakpoints; measure Debian's amd64 kernel")
        data += piece
