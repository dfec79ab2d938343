"""A trace on disk: lines of text, lines of JSON, what Perfetto and Chrome load, or a plot.

Room: `bt`. Plain text without a filter is one line an exit, written unbuffered before the exit is handled, so that the
file is complete however the process ends, also by a signal that cannot be caught. The other forms are made of the
records of `paravirt.services.trace`; the file's name says which.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from bt.output import check_names, unwritable
from emulator.errors import Unwritable

if TYPE_CHECKING:
    from emulator.driver import Driver
    from paravirt.services.trace import Filter, Record

_BINS: Final = 240
_COLOURS: Final = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")
_WIDTH, _HEIGHT, _MARGIN = 960, 360, 60


class Form(Protocol):
    """Makes a file of records."""

    def take(self, records: list[Record]) -> None:
        """The next records, in order."""
        ...

    def end(self) -> None:
        """There are no more."""
        ...


class TraceFile:
    """Takes lines. Closed by `close`."""

    def __init__(self, path: Path, originals: Iterable[Path]) -> None:
        """Empty or make the file. Raises `Unwritable`, or `UsageError` where that would destroy one of `originals`."""
        self._path = path
        check_names([path], originals)
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except (OSError, ValueError) as error:
            raise self._cannot(error) from None

    def attach(self, driver: Driver) -> None:
        """Write what this driver does."""
        driver.trace = self.write

    def write(self, line: str) -> None:
        """Write one line. Raises `Unwritable` when the disk is full."""
        data = line.encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise self._cannot(error) from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _cannot(self, error: OSError | ValueError) -> Unwritable:
        return unwritable(self._path, error)


class RecordFile(TraceFile):
    """A trace made of records, in the form that its name says."""

    def __init__(self, path: Path, originals: Iterable[Path], wanted: Filter) -> None:
        super().__init__(path, originals)
        self._wanted = wanted
        forms: dict[str, Callable[[TraceFile], Form]] = {".jsonl": _Lines, ".json": _Chrome, ".svg": _Plot}
        self._form: Form = forms.get(path.suffix, _Text)(self)
        self._close = self._form.end

    def attach(self, driver: Driver) -> None:
        """Write what this driver does."""
        from paravirt.services.trace import Tracer

        tracer = Tracer(driver, self._wanted, self._form.take)

        def close() -> None:
            tracer.close()
            self._form.end()

        self._close = close

    def close(self) -> None:
        """Write the end, and close the file."""
        try:
            self._close()
        finally:
            super().close()


class _Text:
    """A line a record."""

    def __init__(self, file: TraceFile) -> None:
        self._file = file

    def take(self, records: list[Record]) -> None:
        self._file.write(
            "\n".join(
                f"{one.progress} {one.what} level {one.level} pc {one.pc:#x} {one.name}"
                + (f" {one.number:#x}" if one.number else "")
                + (f" at {one.address:#x}" if one.address else "")
                for one in records
            )
        )

    def end(self) -> None:
        """Nothing follows."""


class _Lines:
    """A JSON object a line."""

    def __init__(self, file: TraceFile) -> None:
        self._file = file

    def take(self, records: list[Record]) -> None:
        self._file.write("\n".join(json.dumps(one._asdict(), separators=(",", ":")) for one in records))

    def end(self) -> None:
        """Nothing follows."""


class _Chrome:
    """Trace events as Chrome defines them, which Perfetto loads: instants, and the address spaces as slices."""

    def __init__(self, file: TraceFile) -> None:
        self._file = file
        self._space: Record | None = None
        self._last = 0
        file.write('{"displayTimeUnit":"ns","traceEvents":[')
        names = ((1, "exits"), (2, "the guest's events"), (3, "address space"), (4, "translated code"))
        file.write(",\n".join(self._event("thread_name", "M", 0, tid, {"name": name}) for tid, name in names))

    @staticmethod
    def _event(name: str, kind: str, time: int, thread: int, values: dict[str, object], **more: object) -> str:
        event = {"name": name, "ph": kind, "ts": time / 1000, "pid": 1, "tid": thread, **more, "args": values}
        return json.dumps(event, separators=(",", ":"))

    def take(self, records: list[Record]) -> None:
        threads = {"exits": 1, "switches": 3, "patches": 4}
        lines = []
        for one in records:
            self._last = one.time
            if one.what == "switches":
                lines += self._slice(one)
                continue
            values: dict[str, object] = {"pc": f"{one.pc:#x}", "level": one.level, "progress": one.progress}
            if one.number or one.what != "exits":
                values["number"] = one.number
            if one.address:
                values["address"] = f"{one.address:#x}"
            lines.append(self._event(one.name, "i", one.time, threads.get(one.what, 2), values, cat=one.what, s="t"))
        if lines:
            self._file.write(",\n" + ",\n".join(lines))

    def _slice(self, then: Record | None) -> list[str]:
        """The address space that ends here."""
        before, self._space = self._space, then
        if before is None:
            return []
        end = then.time if then is not None else self._last
        length = {"dur": (end - before.time) / 1000, "cat": "switches"}
        return [self._event(before.name, "X", before.time, 3, {"progress": before.progress}, **length)]

    def end(self) -> None:
        for line in self._slice(None):
            self._file.write(",\n" + line)
        self._file.write("]}")


class _Plot:
    """Exits over the guest's time, by what they were, as a drawing."""

    def __init__(self, file: TraceFile) -> None:
        self._file = file
        self._counts: Counter[tuple[int, str]] = Counter()

    def take(self, records: list[Record]) -> None:
        self._counts.update((one.time // 1_000_000, one.name) for one in records if one.what == "exits")

    def end(self) -> None:
        end = max((moment for moment, _ in self._counts), default=0) + 1
        width = max(1, -(-end // _BINS))
        sums: Counter[str] = Counter()
        for (_, name), count in self._counts.items():
            sums[name] += count
        names = [name for name, _ in sorted(sums.items(), key=lambda one: (-one[1], one[0]))][: len(_COLOURS) - 1]
        bins = [Counter[str]() for _ in range(-(-end // width))]
        for (moment, name), count in self._counts.items():
            bins[moment // width][name if name in names else "others"] += count
        top = max((sum(one.values()) for one in bins), default=0) or 1
        step = (_WIDTH - 2 * _MARGIN) / len(bins)
        shapes = []
        for at, one in enumerate(bins):
            y = float(_HEIGHT - _MARGIN)
            for colour, name in zip(_COLOURS, [*names, "others"], strict=False):
                height = one[name] / top * (_HEIGHT - 2 * _MARGIN)
                if height:
                    y -= height
                    x = _MARGIN + at * step
                    shapes.append(
                        f'<rect x="{x:.1f}" y="{y:.1f}" width="{step:.2f}" height="{height:.2f}" fill="{colour}"/>'
                    )
        legend = [
            f'<text x="{_WIDTH - _MARGIN - 290}" y="{20 + 14 * place}" fill="{colour}">{_escaped(name)}: '
            f"{sums[name] if name in names else sum(sums.values()) - sum(sums[one] for one in names)}</text>"
            for place, (colour, name) in enumerate(zip(_COLOURS, [*names, "others"], strict=False))
        ]
        bottom = _HEIGHT - _MARGIN
        self._file.write(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
            f'font-size="11"><rect width="100%" height="100%" fill="white"/>{"".join(shapes)}'
            f'<path d="M{_MARGIN} {_MARGIN}V{bottom}H{_WIDTH - _MARGIN}" fill="none" stroke="black"/>'
            f'<text x="{_MARGIN}" y="{bottom + 16}">0</text>'
            f'<text x="{_WIDTH - _MARGIN}" y="{bottom + 16}" text-anchor="end">{end} ms of guest time</text>'
            f'<text x="4" y="{_MARGIN - 6}">{top} exits in {width} ms</text>{"".join(legend)}</svg>'
        )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def open_trace(path: Path, originals: Iterable[Path], wanted: str | None = None) -> TraceFile:
    """The trace that a file's name and a filter ask for. Raises `UsageError` where the one cannot be, or the other is
    none."""
    from paravirt.services.trace import Filter, filter_of

    if wanted is None and path.suffix not in (".json", ".jsonl", ".svg"):
        return TraceFile(path, originals)
    return RecordFile(path, originals, Filter() if wanted is None else filter_of(wanted))
