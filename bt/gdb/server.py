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
from typing import Any, Final, Literal

from bt.gdb.arguments import piece, read_point, read_span
from bt.gdb.packets import LONGEST, Kind, Reader, packet
from bt.gdb.targets import Target
from emulator.errors import RetrapError, UsageError, VerifyFailed
from emulator.machine import Outcome
from paravirt.services.breakpoints import Stop, StopKind
from paravirt.services.debug import Debugger

_PATIENCE: Final = 10.0
"""Seconds that a gdb may take to read what it is sent."""
_LOOKED_FOR: Final = 500_000
"""Nanoseconds in which gdb's next packet mostly comes."""
_MOST_READ: Final = 0x1000
_TRAP = 5
_STACK: Final = frozenset({"rsp", "rbp", "esp", "ebp", "sp", "x29", "r29", "lr"})
_WATCHES: Final = {"2": StopKind.WATCHPOINT, "3": StopKind.READ, "4": StopKind.ACCESS}
"""Kinds of watchpoints as Z and z packets have them."""
_REASONS: Final = {StopKind.WATCHPOINT: "watch", StopKind.READ: "rwatch", StopKind.ACCESS: "awatch"}
_BUSY: Final = b"E.another gdb is attached to this guest; detach it first"


class Gone(Exception):
    """The connection is not there any more."""


class Detached(Exception):
    """gdb goes, and the guest goes on."""


class Killed(Exception):
    """gdb ends the guest."""


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


class Server:
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
        self.debugger = debugger
        self.driver = debugger.driver
        self.target = target
        self.listener = listener
        self.monitor = monitor
        self.say = say
        self._running = running if running is not None else contextlib.nullcontext()
        self.symbol_file = ""
        """Path, on this host, of a file with the guest's symbols, which gdb loads by itself; none by default."""
        self._peer: socket.socket | None = None
        self._reader = Reader()
        self._waiting: list[tuple[Kind, bytes]] = []
        self._acknowledge = True
        self._answer = b""
        self._last: Stop | None = None
        self._description = target.description().encode()
        names = {target.pc, *_STACK}
        self._first = [number for number, row in target.by_number.items() if row.name in names]
        self._first_rows = [target.by_number[number] for number in self._first]
        self._outcome: Outcome | None = None
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

    def answer(self, payload: bytes) -> bytes | None:
        """The answer to a packet; None where there is none. Never fails, whatever the packet is."""
        try:
            text = payload.decode("latin-1")
            for start, act in _BY_LETTER.get(text[:1], ()):
                if text.startswith(start):
                    return act(self, text[len(start) :])
        except RetrapError as error:
            if payload[:1] in b"gmp":
                return b"E0e"  # whose answers are hexadecimal digits
            return b"E." + str(error).encode("ascii", "replace")
        except (ValueError, IndexError, OverflowError):
            return b"E01"
        return b""

    # -- registers and memory -------------------------------------------------------------------

    def _all_registers(self, _rest: str) -> bytes:
        return self.target.read_all(self.driver, self.target.by_number.values()).hex().encode()

    def _set_all(self, rest: str) -> bytes:
        data, at = bytes.fromhex(rest), 0
        for row in self.target.by_number.values():
            piece = data[at : at + row.bits // 8]
            if len(piece) * 8 < row.bits:
                break
            if row.write is not None and piece != self.target.read(self.driver, row):
                self.target.write(self.driver, row, piece)
            at += row.bits // 8
        self.debugger.changed()
        return b"OK"

    def _register(self, rest: str) -> bytes:
        row = self.target.by_number.get(int(rest, 16))
        return b"E01" if row is None else self.target.read(self.driver, row).hex().encode()

    def _set_register(self, rest: str) -> bytes:
        number, _, value = rest.partition("=")
        row = self.target.by_number.get(int(number, 16))
        if row is None:
            return b"E01"
        data = bytes.fromhex(value)
        if data != self.target.read(self.driver, row):
            self.target.write(self.driver, row, data)
            self.debugger.changed()
        return b"OK"

    def _memory(self, rest: str) -> bytes:
        address, size = read_span(rest)
        data = self.debugger.read(address, min(size, _MOST_READ))
        return data.hex().encode() if data or not size else b"E0e"

    def _set_memory(self, rest: str) -> bytes:
        span, _, data = rest.partition(":")
        address, size = read_span(span)
        return self._store(address, size, bytes.fromhex(data))

    def _set_binary(self, rest: str) -> bytes:
        span, _, data = rest.partition(":")
        address, size = read_span(span)
        return self._store(address, size, data.encode("latin-1"))

    def _store(self, address: int, size: int, data: bytes) -> bytes:
        if size != len(data):
            return b"E01"
        if data:
            self.debugger.write(address, data)
        return b"OK"

    # -- stops ----------------------------------------------------------------------------------

    def _set_stop(self, rest: str) -> bytes:
        kind, address, size = read_point(rest)
        if kind in ("0", "1"):
            self.debugger.stops.set_breakpoint(address)
        elif kind in _WATCHES:
            place = self.debugger.place(address)
            if place is None or not 0 < size <= 4096 - address % 4096:
                return b"E.the guest has no memory there that could be watched"
            self.debugger.stops.watch(place, size, address, _WATCHES[kind])
        else:
            return b""
        return b"OK"

    def _remove_stop(self, rest: str) -> bytes:
        kind, address, size = read_point(rest)
        if kind in ("0", "1"):
            self.debugger.stops.remove_breakpoint(address)
        elif kind in _WATCHES:
            self.debugger.stops.unwatch(size, address, _WATCHES[kind])
        else:
            return b""
        return b"OK"

    def _run(self, act: Callable[[], Stop]) -> bytes:
        try:
            with self._running:
                stop = act()
        except VerifyFailed as error:
            self.say(str(error))
            stop = Stop(StopKind.ASKED, self.driver.pc)
        self._last = stop
        if stop.kind is StopKind.ENDED:
            self._outcome = stop.outcome
        return self._stopped(stop)

    def _stopped(self, stop: Stop | None) -> bytes:
        """A stop reply."""
        if stop is None:
            return b"T05thread:1;"
        if stop.kind is StopKind.ENDED:
            outcome = stop.outcome
            return b"W%02x" % ((outcome.status if outcome is not None else 0) & 0xFF)
        reason = ""
        if stop.kind is StopKind.BREAKPOINT:
            reason = "hwbreak:;"
        elif stop.kind in _WATCHES.values():
            reason = f"{_REASONS[stop.kind]}:{stop.address:x};"
        elif stop.kind is StopKind.BEGINNING:
            reason = "replaylog:begin;"
        number = 2 if stop.kind is StopKind.ASKED else _TRAP
        return f"T{number:02x}{reason}{self._expected()}thread:1;".encode()

    def _expected(self) -> str:
        """The registers that gdb asks for at every stop, ahead of that."""
        data, parts, at = self.target.read_all(self.driver, self._first_rows).hex(), [], 0
        for number, row in zip(self._first, self._first_rows, strict=True):
            end = at + row.bits // 4
            parts.append(f"{number:x}:{data[at:end]};")
            at = end
        return "".join(parts)

    def _continue(self, rest: str) -> bytes:
        self._jump(rest)
        return self._run(self.debugger.go)

    def _step(self, rest: str) -> bytes:
        self._jump(rest)
        return self._run(self.debugger.step)

    def _jump(self, rest: str) -> None:
        if rest:
            row = self.target.by_name[self.target.pc]
            order: Literal["big", "little"] = "big" if self.target.byte_order == "big" else "little"
            self.target.write(self.driver, row, int(rest, 16).to_bytes(row.bits // 8, order))
            self.debugger.changed()

    def _resume(self, rest: str) -> bytes:
        """vCont: what the one thread is told, or all are."""
        action = rest.split(";")[0].split(":")[0]
        if action[:1] in ("c", "C"):
            return self._run(self.debugger.go)
        if action[:1] in ("s", "S"):
            return self._run(self.debugger.step)
        return b"E01"

    def _backwards(self, rest: str) -> bytes:
        if self.debugger.timeline is None:
            return b"E.no history of this guest is kept; begin with retrap debug --reverse"
        return self._run(self.debugger.step_back if rest == "s" else self.debugger.go_back)

    # -- the rest -------------------------------------------------------------------------------

    def _supported(self, _rest: str) -> bytes:
        able = f"PacketSize={LONGEST:x};QStartNoAckMode+;qXfer:features:read+;hwbreak+;vContSupported+"
        if self.symbol_file:
            able += ";qXfer:exec-file:read+"
        if self.debugger.timeline is not None:
            able += ";ReverseStep+;ReverseContinue+"
        return able.encode()

    def _no_acknowledgement(self, _rest: str) -> bytes | None:
        self._reply(b"OK")
        self._acknowledge = self._reader.checks = False
        return None

    def _features(self, rest: str) -> bytes:
        name, _, span = rest.partition(":")
        if name != "target.xml":
            return b"E00"
        return piece(self._description, span)

    def _executable(self, rest: str) -> bytes:
        return piece(self.symbol_file.encode(), rest.rpartition(":")[2]) if self.symbol_file else b""

    def _command(self, rest: str) -> bytes | None:
        text = bytes.fromhex(rest).decode("utf-8", "replace")
        try:
            answer = self.monitor(text)
        except RetrapError as error:
            answer = f"{error}\n"
        data = answer.encode()
        for at in range(0, len(data), LONGEST // 4):
            self._reply(b"O" + data[at : at + LONGEST // 4].hex().encode())
        return b"OK"

    def _extra(self, _rest: str) -> bytes:
        level = getattr(getattr(self.driver, "vcpu", self.driver), "level", 0)
        return f"virtual CPU 0, level {level}".encode().hex().encode()

    def _detach(self, _rest: str) -> None:
        self._reply(b"OK")
        raise Detached

    def _kill(self, _rest: str) -> None:
        if _rest.startswith(";"):
            self._reply(b"OK")
        raise Killed


def _fixed(answer: bytes) -> Callable[[Any, str], bytes]:
    return lambda _server, _rest: answer


_PACKETS: Final[tuple[tuple[str, Callable[[Any, str], bytes | None]], ...]] = (
    ("vCont?", _fixed(b"vCont;c;C;s;S")),
    ("vCont;", Server._resume),
    ("vKill", Server._kill),
    ("qSupported", Server._supported),
    ("QStartNoAckMode", Server._no_acknowledgement),
    ("qXfer:features:read:", Server._features),
    ("qXfer:exec-file:read:", Server._executable),
    ("qRcmd,", Server._command),
    ("qThreadExtraInfo,", Server._extra),
    ("qfThreadInfo", _fixed(b"m1")),
    ("qsThreadInfo", _fixed(b"l")),
    ("qAttached", _fixed(b"1")),
    ("qC", _fixed(b"QC1")),
    ("T", _fixed(b"OK")),
    ("H", _fixed(b"OK")),
    ("?", lambda server, _rest: server._stopped(server._last)),
    ("g", Server._all_registers),
    ("G", Server._set_all),
    ("p", Server._register),
    ("P", Server._set_register),
    ("m", Server._memory),
    ("M", Server._set_memory),
    ("X", Server._set_binary),
    ("Z", Server._set_stop),
    ("z", Server._remove_stop),
    ("c", Server._continue),
    ("s", Server._step),
    ("b", Server._backwards),
    ("D", Server._detach),
    ("k", Server._kill),
)
"""Packets by how they begin, and what answers them; the first that fits. Any other is answered as not known."""
_BY_LETTER: Final = {
    letter: tuple(row for row in _PACKETS if row[0].startswith(letter)) for letter in {row[0][0] for row in _PACKETS}
}
