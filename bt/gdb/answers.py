"""What gdb's packets ask of a guest, and the answers: registers, memory, stops, running, and what there is.

Room: `bt/gdb`. Packets come in and answers go out as bytes; the connection is `bt.gdb.server`'s. Whatever a packet is,
the guest stays whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final, Literal

from bt.gdb.arguments import piece, read_point, read_span
from bt.gdb.packets import LONGEST, Reader
from bt.gdb.targets import Target
from emulator.errors import RetrapError, VerifyFailed
from emulator.machine import Outcome
from paravirt.services.breakpoints import Stop, StopKind
from paravirt.services.debug import Debugger

_MOST_READ: Final = 0x1000
_TRAP = 5
_STACK: Final = frozenset({"rsp", "rbp", "esp", "ebp", "sp", "x29", "r29", "lr"})
_WATCHES: Final = {"2": StopKind.WATCHPOINT, "3": StopKind.READ, "4": StopKind.ACCESS}
"""Kinds of watchpoints as Z and z packets have them."""
_REASONS: Final = {StopKind.WATCHPOINT: "watch", StopKind.READ: "rwatch", StopKind.ACCESS: "awatch"}


class Detached(Exception):
    """gdb goes, and the guest goes on."""


class Killed(Exception):
    """gdb ends the guest."""


class Answers:
    """What is asked of one guest, and done to it."""

    def __init__(
        self,
        debugger: Debugger,
        target: Target,
        monitor: Callable[[str], str],
        say: Callable[[str], None],
        running: contextlib.AbstractContextManager[object] | None,
    ) -> None:
        """As `bt.gdb.server.Server`."""
        self.debugger = debugger
        self.driver = debugger.driver
        self.target = target
        self.monitor = monitor
        self.say = say
        self._running = running if running is not None else contextlib.nullcontext()
        self.symbol_file = ""
        """Path, on this host, of a file with the guest's symbols, which gdb loads by itself; none by default."""
        self._reader = Reader()
        self._acknowledge = True
        self._last: Stop | None = None
        self._description = target.description().encode()
        names = {target.pc, *_STACK}
        self._first = [number for number, row in target.by_number.items() if row.name in names]
        self._first_rows = [target.by_number[number] for number in self._first]
        self._outcome: Outcome | None = None

    def _reply(self, payload: bytes) -> None:
        """Send an answer. The connection's to do."""
        raise NotImplementedError

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
    ("vCont;", Answers._resume),
    ("vKill", Answers._kill),
    ("qSupported", Answers._supported),
    ("QStartNoAckMode", Answers._no_acknowledgement),
    ("qXfer:features:read:", Answers._features),
    ("qXfer:exec-file:read:", Answers._executable),
    ("qRcmd,", Answers._command),
    ("qThreadExtraInfo,", Answers._extra),
    ("qfThreadInfo", _fixed(b"m1")),
    ("qsThreadInfo", _fixed(b"l")),
    ("qAttached", _fixed(b"1")),
    ("qC", _fixed(b"QC1")),
    ("T", _fixed(b"OK")),
    ("H", _fixed(b"OK")),
    ("?", lambda server, _rest: server._stopped(server._last)),
    ("g", Answers._all_registers),
    ("G", Answers._set_all),
    ("p", Answers._register),
    ("P", Answers._set_register),
    ("m", Answers._memory),
    ("M", Answers._set_memory),
    ("X", Answers._set_binary),
    ("Z", Answers._set_stop),
    ("z", Answers._remove_stop),
    ("c", Answers._continue),
    ("s", Answers._step),
    ("b", Answers._backwards),
    ("D", Answers._detach),
    ("k", Answers._kill),
)
"""Packets by how they begin, and what answers them; the first that fits. Any other is answered as not known."""
_BY_LETTER: Final = {
    letter: tuple(row for row in _PACKETS if row[0].startswith(letter)) for letter in {row[0][0] for row in _PACKETS}
}
