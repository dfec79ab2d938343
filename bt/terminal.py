"""The user's side of a guest's console: a screen, a keyboard, and the signals that end a run.

Room: `bt`. It knows file descriptors and terminals, and no machine: it gives bytes, takes bytes and says whether
the run shall end. A terminal is raw only between `__enter__` and `__exit__`, and gets its settings back on every way
out; signals only leave a note, which the run reads at its next look around.
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Protocol, Self

from emulator.errors import Timeout

PREFIX: Final = 0x01
"""Ctrl-A: what follows is for retrap and not for the guest, as in QEMU."""

HELP: Final = (
    "Ctrl-A x      end the run\n"
    "Ctrl-A Ctrl-A send Ctrl-A to the guest\n"
    "Ctrl-A h      this help; every other key, Ctrl-C included, is the guest's\n"
)

_PIECE = 4096
"""Bytes read and written at once."""
_RECENT = 1 << 16
_LONGEST_TIMER = 1e8
"""Seconds; a timer of the host takes no more than its time_t."""


class Screen:
    """What the guest prints, on its way to a file descriptor (None: nowhere)."""

    def __init__(self, descriptor: int | None, until: bytes = b"", reached: Callable[[], None] = lambda: None) -> None:
        """`reached` is called once, when `until` (not empty) has been printed."""
        self._descriptor = descriptor
        self._buffer = bytearray()
        self._recent = bytearray()
        self._until = until
        self._reached = reached
        self._sha = hashlib.sha256()
        self.size = 0
        """Bytes printed."""
        self.in_line = False
        """The cursor is behind something: the last byte was no line end."""

    @property
    def sha256(self) -> str:
        """Of everything printed, in hexadecimal."""
        self.flush()
        return self._sha.hexdigest()

    def write(self, data: bytes) -> None:
        """Take console bytes; they are out at a line's end, when there are many, and at `flush`."""
        self._buffer += data
        if b"\n" in data or len(self._buffer) >= _PIECE:
            self.flush()
        if self._until:
            self._look_for(data)

    def _look_for(self, data: bytes) -> None:
        searched = max(0, len(self._recent) - len(self._until))
        self._recent += data
        if self._until in self._recent[searched:]:
            self._until = b""
            self._reached()
        elif len(self._recent) > _RECENT:
            del self._recent[: -len(self._until)]

    def flush(self) -> None:
        """Write out what waits. Raises OSError, BrokenPipeError among them."""
        if not self._buffer:
            return
        data, self._buffer = bytes(self._buffer), bytearray()
        self._sha.update(data)
        self.size += len(data)
        self.in_line = not data.endswith(b"\n")
        if self._descriptor is not None:
            write_all(self._descriptor, data)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, also where the descriptor takes only some of them now."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # a terminal that some other program made non-blocking
            select.select([], [descriptor], [])


class KeyFilter:
    """Takes the commands out of what is typed: Ctrl-A and a letter."""

    def __init__(self, leave: Callable[[], None], say: Callable[[str], None]) -> None:
        """`leave` is called for Ctrl-A x, `say` with a text for Ctrl-A h."""
        self._leave = leave
        self._say = say
        self._prefixed = False

    def feed(self, keys: bytes) -> bytes:
        """What of `keys` is for the guest."""
        out = bytearray()
        for key in keys:
            if self._prefixed:
                self._prefixed = False
                out += self._command(key)
            elif key == PREFIX:
                self._prefixed = True
            else:
                out.append(key)
        return bytes(out)

    def _command(self, key: int) -> bytes:
        if key in b"xX":
            self._leave()
        elif key in b"hH?":
            self._say(HELP)
        elif key == PREFIX or key in b"aA":
            return bytes([PREFIX])
        return b""


class Keyboard:
    """Console input from a terminal, a pipe or a file."""

    def __init__(self, descriptor: int | None, leave: Callable[[], None]) -> None:
        """`descriptor` None: there is no input. `leave` is called when the user asks to end the run."""
        self._descriptor = descriptor
        self._settings: list[Any] | None = None
        self._filter: KeyFilter | None = None
        self._ended = False
        if descriptor is not None and os.isatty(descriptor):
            if _in_foreground(descriptor):
                self._filter = KeyFilter(leave, _say)
            else:
                self._descriptor = None  # reading would stop a background job

    @property
    def interactive(self) -> bool:
        """Somebody types."""
        return self._filter is not None

    def __enter__(self) -> Self:
        if self._filter is not None and self._descriptor is not None:
            self._settings = termios.tcgetattr(self._descriptor)
            self.make_raw()
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def make_raw(self) -> None:
        """Every key to the guest; what the guest prints still gets carriage returns."""
        if self._settings is None or self._descriptor is None:
            return
        raw = termios.tcgetattr(self._descriptor)
        raw[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN | termios.ISIG)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, raw)

    def give_back(self) -> None:
        """Restore the terminal as it was found."""
        if self._settings is not None and self._descriptor is not None:
            try:
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._settings)
            except termios.error:
                return  # it has gone

    def poll(self, seconds: float) -> bytes | None:
        """What was typed, waiting at most `seconds`; empty when nothing was, None when nothing will ever be."""
        if self._descriptor is None or self._ended:
            return None
        try:
            if not select.select([self._descriptor], [], [], seconds)[0]:
                return b""
            data = os.read(self._descriptor, _PIECE)
        except BlockingIOError:
            return b""
        except (OSError, ValueError):
            data = b""  # it has gone, which is an end like any other
        if not data:
            self._ended = True
            return None
        return data if self._filter is None else self._filter.feed(data)


class Line(Protocol):
    """A guest's serial port, as far as input goes."""

    @property
    def listening(self) -> bool:
        """The guest has asked for input."""
        ...

    @property
    def unread(self) -> int:
        """Bytes fed and not read."""
        ...


class Typed:
    """What is typed, kept until the guest listens: a script on stdin must not be lost to a kernel that boots."""

    def __init__(self, keyboard: Keyboard, line: Line, wakes: Callable[[], bool]) -> None:
        """`wakes` says whether anything but input can wake an idle guest."""
        self._keyboard = keyboard
        self._line = line
        self._wakes = wakes
        self._kept = bytearray()
        self._ended = False
        self._listening = False

    def poll(self, seconds: float) -> bytes | None:
        """Input for the guest, waiting at most `seconds` (0: the guest is not idle); None when none will ever come."""
        self._listening = self._listening or self._line.listening
        room = len(self._kept) + self._line.unread < _PIECE
        if not self._ended and room:
            # Nobody waits for a script, so neither does the guest's clock, until the guest does.
            data = self._keyboard.poll(seconds if self._listening or self._keyboard.interactive else 0)
            if data is None:
                self._ended = True
            else:
                self._kept += data
        elif not room:
            time.sleep(seconds)
        if self._listening and self._kept:
            data, self._kept = bytes(self._kept), bytearray()
            return data
        if self._ended and (not self._kept or (seconds and not self._wakes())):
            return None
        return b""


def _say(text: str) -> None:
    if sys.stderr is not None:
        print(f"\n{text}", end="", file=sys.stderr, flush=True)


def _in_foreground(descriptor: int) -> bool:
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False


def descriptor_of(stream: Any) -> int | None:
    """The file descriptor under one of Python's standard streams; None when the process was started without it."""
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None


class Signals:
    """While entered, the first signal to end asks the run to end; a second one breaks off whatever is under way.

    The host's time limit is one of these signals (SIGALRM), so it holds however busy the guest keeps its hypervisor.
    """

    _ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    GRACE: Final = 10.0
    """Seconds from the request that a run has ended by then, on a time limit, to breaking it off."""

    def __init__(
        self, keyboard: Keyboard, end: Callable[[int], None], wake: Callable[[], None], limit: float | None = None
    ) -> None:
        """`end` is called with the signal's number when the run shall end; `limit` is in seconds of the host.

        Python calls `end` between two of its own instructions, and the guest may run for long without any. So `wake`
        is called as well, at once and from another thread: it has the guest come back to Python.
        """
        self.received: int | None = None
        """Number of the first signal."""
        self._keyboard = keyboard
        self._end = end
        self._wake = wake
        self._pipe: tuple[int, int] | None = None
        self._woken_before = -1
        self._watcher: threading.Thread | None = None
        self._limit = limit
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._watch()
        for number in self._ENDING:
            # A job that was started to ignore a signal (nohup, a shell's background job) goes on ignoring it.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        if self._keyboard.interactive:
            self._before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._pause)
        if self._limit is not None:
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._note)
            signal.setitimer(signal.ITIMER_REAL, min(self._limit, _LONGEST_TIMER), self.GRACE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._limit is not None and self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        self._stop_watching()

    def _watch(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._pipe = reader, writer
        self._woken_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._wait_for_signals, args=(reader,), daemon=True)
        self._watcher.start()

    def _wait_for_signals(self, reader: int) -> None:
        while os.read(reader, 1):
            self._wake()

    def _stop_watching(self) -> None:
        if self._pipe is None or self._watcher is None:
            return
        reader, writer = self._pipe
        self._pipe = None
        signal.set_wakeup_fd(self._woken_before)
        os.close(writer)
        self._watcher.join()
        os.close(reader)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            self._end(number)
        elif number == signal.SIGALRM and self.received == number:
            raise Timeout(f"the run did not end within {self._limit:g} s of host time, and had to be broken off")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        elif number != signal.SIGALRM:
            sys.exit(128 + number)

    def _pause(self, _number: int, _frame: FrameType | None) -> None:
        """Stopped from outside, as by `kill -TSTP`: the shell gets its terminal, and we get it again afterwards."""
        self._keyboard.give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._keyboard.make_raw()
