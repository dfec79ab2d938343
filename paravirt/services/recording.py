"""A recording's file: lines of JSON, each with a checksum of all up to it, whole to the last one however a run ends.

Room: `paravirt/services`. The first line says what was run, then come inputs and marks in the order of the guest's
progress, and last how it ended. A line that is damaged is named; what is cut off behind a line is a run without an end.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from emulator.engine.landing import Passed
from emulator.errors import BadSnapshot, Unwritable, UsageError, brief
from paravirt.services.columns import typed
from paravirt.services.inputs import Input, Moment

FORMAT: Final = 3
"""Raised at every change of a line's meaning; a recording of another format is refused by name."""
KIND: Final = "retrap recording"
_MOST_LINES: Final = 50_000_000
_LONGEST: Final = 1 << 20
_TOGETHER: Final = 16
"""Marks that are written together: of a process that is killed, the last are lost."""
_REGISTERS: Final = 16
"""Of the processors whose engines land."""
INPUT, MARK, END, PASSED = "input", "mark", "end", "passed"


class Mark(NamedTuple):
    """The guest at a tick: what must be the same when the run is done again."""

    progress: int
    now: int
    """Virtual nanoseconds."""
    exits: int
    """All exits so far."""
    processor: str
    """Hash of the virtual processor's state."""


class End(NamedTuple):
    """How a run ended, and what was there then."""

    kind: str
    status: int
    by_guest: bool
    """The guest ended by itself; otherwise it was ended at this progress from outside."""
    mark: Mark
    console: str
    """SHA-256 of all that it printed."""
    printed: int
    """Bytes."""
    memory: str
    """SHA-256 of its memory, as `GuestMemory.digest`."""
    devices: str
    """SHA-256 of clock and devices."""
    counts: tuple[tuple[str, str, int], ...]
    """Exits by operation and route."""


class Writer:
    """Writes a recording, a line at a time."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        """`run` says what is run. Raises `UsageError` where the file cannot be written."""
        self._path = path
        self._checksum = 0
        self._waiting: list[bytes] = []
        """Marks that are written together."""
        self.missed: UsageError | None = None
        """Why nothing more is written: a full disk costs the guest nothing, and is told at the end."""
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except (OSError, ValueError) as error:
            raise self._cannot(error) from None
        self._line([KIND, FORMAT, run])
        if self.missed is not None:
            os.close(self._descriptor)
            raise self.missed

    def input(self, one: Input) -> None:
        """Something came from outside."""
        data = None if one.data is None else one.data.hex()
        self._line([INPUT, *one.moment, data])

    def passed(self, passed: Passed) -> None:
        """The engine says what does not follow from the guest."""
        landing = passed.landing
        told = None if landing is None else [*landing[:2], list(landing.registers), *landing[3:]]
        self._add(json.dumps([PASSED, passed.exits, passed.units, told], separators=(",", ":")).encode())
        if len(self._waiting) >= _TOGETHER:
            self._flush()

    def mark(self, mark: Mark) -> None:
        """The guest is here."""
        self._add(b'["mark",%d,%d,%d,"%b"]' % (*mark[:3], mark.processor.encode()))
        if len(self._waiting) >= _TOGETHER:
            self._flush()

    def end(self, end: End) -> None:
        """The run ended. Raises `Unwritable` where not all of it could be written."""
        self._line([END, end.kind, end.status, end.by_guest, list(end.mark), *end[4:8], [list(c) for c in end.counts]])
        if self.missed is not None:
            raise self.missed

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._descriptor >= 0:
            try:
                self._flush()
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def _line(self, value: list[Any]) -> None:
        self._add(json.dumps(value, separators=(",", ":")).encode())
        self._flush()

    def _add(self, text: bytes) -> None:
        self._checksum = zlib.crc32(text, self._checksum)
        self._waiting.append(b"%b %08x\n" % (text, self._checksum))

    def _flush(self) -> None:
        data = b"".join(self._waiting)
        self._waiting.clear()
        try:
            while data and self.missed is None:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            self.missed = self._cannot(error)

    def _cannot(self, error: OSError | ValueError) -> UsageError:
        reason = error.strerror if isinstance(error, OSError) else error
        return Unwritable(f"{self._path}: the recording cannot be written ({reason}); name a file where there is room")


@dataclass(slots=True)
class Recording:
    """A recording that was read."""

    path: Path
    run: dict[str, Any]
    inputs: list[Input] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)
    """What an engine told whose capabilities say `lands`."""
    end: End | None = None
    """None: the recording broke off, as when its process was killed."""


def read(path: Path) -> Recording:
    """Read a recording. Raises `BadSnapshot` for what is none, or damaged, `UsageError` where there is no file."""
    recording: Recording | None = None
    for number, value in _lines(path):
        try:
            if recording is None:
                recording = _begin(path, value)
            else:
                _add(recording, value)
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise BadSnapshot(
                f"{path}: line {number} is none of a recording ({brief(str(error))}); record the run anew"
            ) from None
    if recording is None:
        raise BadSnapshot(f"{path}: is no recording; name a file that `retrap run --record` wrote")
    return recording


def _lines(path: Path) -> Iterator[tuple[int, list[Any]]]:
    """The lines that are whole, checked."""
    checksum = 0
    try:
        with path.open("rb") as file:
            for number in range(1, _MOST_LINES):
                line = file.readline(_LONGEST)
                if not line:
                    return
                text, _, sum_ = line.rstrip(b"\n").rpartition(b" ")
                checksum = zlib.crc32(text, checksum)
                if number == 1 and not text.startswith(b'["' + KIND.encode()):
                    raise BadSnapshot(
                        f"{path}: is no recording of retrap; name a file that `retrap run --record` wrote"
                    )
                if not line.endswith(b"\n"):
                    if number > 1 and len(line) < _LONGEST:
                        return  # it was being written when the process ended
                    raise BadSnapshot(f"{path}: line {number} is cut short; record the run anew")
                if sum_ != b"%08x" % checksum:
                    raise BadSnapshot(f"{path}: line {number} is damaged, as its checksum says; record the run anew")
                value = json.loads(text)
                if not isinstance(value, list) or not value:
                    raise BadSnapshot(f"{path}: line {number} is none of a recording; record the run anew")
                yield number, value
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); name a recording") from None
    except (ValueError, RecursionError) as error:
        raise BadSnapshot(f"{path}: is no recording of retrap ({brief(str(error))}); record the run anew") from None


def _begin(path: Path, value: list[Any]) -> Recording:
    _, version, run = value
    if version != FORMAT:
        raise BadSnapshot(
            f"{path}: is a recording of format {version}, and this retrap reads format {FORMAT}; replay it with the "
            "retrap that made it, or record the run anew"
        )
    if not isinstance(run, dict):
        raise ValueError("it does not say what was run")
    return Recording(path, run)


def _add(recording: Recording, value: list[Any]) -> None:
    kind, *rest = value
    if recording.end is not None:
        raise ValueError("it comes behind the end")
    if kind == INPUT:
        progress, now, data = rest
        moment = Moment(typed(int, progress), typed(int, now))
        recording.inputs.append(Input(moment, None if data is None else typed(bytes, data)))
    elif kind == MARK:
        recording.marks.append(typed(Mark, rest))
    elif kind == PASSED:
        recording.passed.append(_passed(recording, typed(Passed, rest)))
    elif kind == END:
        recording.end = typed(End, rest)
    else:
        raise ValueError(f"there is no {str(kind)[:20]!r}")


def _passed(recording: Recording, passed: Passed) -> Passed:
    """Raises `ValueError` for what no engine tells."""
    landing, before = passed.landing, recording.passed[-1].exits if recording.passed else 0
    if passed.exits < before or passed.units <= 0:
        raise ValueError("time goes back")
    if landing is not None:
        words = (landing.place, landing.flags, *landing.registers)
        if len(landing.registers) != _REGISTERS or not all(0 <= word < 1 << 64 for word in words):
            raise ValueError("registers that no processor has")
        meter = landing.meter
        if meter is not None and not (0 <= meter[0] < _REGISTERS and meter[1] and 0 <= meter[2] < 1 << 32):
            raise ValueError("a register counts that is none")
    return passed
