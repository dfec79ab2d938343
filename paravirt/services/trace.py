"""What a guest does as records: exits, interrupts, faults, system calls, switches of address space, translated code.

Room: `paravirt/services`. What is not wanted costs nothing or next to it: whether a kind of exit is wanted is decided
once, and nothing is formatted here. Who takes the records makes text of them (`bt.tracefile`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from emulator.driver import Driver
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.protocol import Handler
from emulator.errors import UsageError

KINDS: Final = ("exits", "interrupts", "faults", "exceptions", "calls", "switches", "patches")
"""What can be traced: exits to the hypervisor; of the guest's own events its interrupts, faults of memory, other
exceptions and system calls; switches of its address space; pages of code that were translated."""
_AT_ONCE: Final = 4096
_EVERYWHERE: Final = (1 << 64) - 1
_FORMS: Final = f"{', '.join(KINDS)}, name=REGEX, level=N and pc=FIRST-LAST, with commas between them"


class Record(NamedTuple):
    """Something that happened."""

    time: int
    """Guest time, nanoseconds."""
    progress: int
    """Units of the engine's progress."""
    what: str
    """One of `KINDS`."""
    name: str
    """Operation and route of an exit, or what else it was."""
    pc: int
    level: int
    number: int
    """Vector or number; sites of translated code; the new address space."""
    address: int
    """What a fault is about; the page that was translated."""


class Filter(NamedTuple):
    """What is wanted."""

    what: frozenset[str] = frozenset(KINDS)
    name: re.Pattern[str] | None = None
    """Found in `Record.name`."""
    level: int | None = None
    first: int = 0
    last: int = _EVERYWHERE


def filter_of(text: str) -> Filter:
    """A filter as the command line has it. Raises `UsageError` for what is none."""
    what: set[str] = set()
    found = Filter()
    for part in filter(None, (one.strip() for one in text.split(","))):
        key, equals, value = part.partition("=")
        try:
            if not equals and part in KINDS:
                what.add(part)
            elif key == "name" and value:
                found = found._replace(name=re.compile(value))
            elif key == "level":
                found = found._replace(level=int(value))
            elif key == "pc":
                first, dash, last = value.partition("-")
                found = found._replace(first=int(first, 16), last=int(last, 16) if dash else int(first, 16))
            else:
                raise ValueError
        except (ValueError, re.error):
            raise UsageError(f"--trace-filter: {part!r} is none; give {_FORMS}") from None
    return found._replace(what=frozenset(what)) if what else found


_SPACES: Final[dict[str, Callable[[Any], int]]] = {
    "x86-64": lambda cpu: int(cpu.cr3),
    "i386": lambda cpu: int(cpu.cr3),
    "aarch64": lambda cpu: int(cpu.context.ttbr0),
    "armv7": lambda cpu: int(cpu.context.ttbr0),
    "mips32": lambda cpu: int(cpu.entry_hi & 0xFF),
}
"""What tells one address space from another, of a virtual CPU."""


class Tracer:
    """Makes records of one driver's run."""

    def __init__(self, driver: Driver, wanted: Filter, take: Callable[[list[Record]], None]) -> None:
        """`take` is given records in order, some thousand at a time."""
        self.driver: Any = driver
        self.wanted = wanted
        self._take = take
        self._records: list[Record] = []
        self._now = driver.machine.clock.now
        self._cpu: Any = getattr(driver, "vcpu", driver)
        self._page = 0
        self._kinds: dict[object, str] = {}
        if wanted.what & {"interrupts", "faults", "exceptions", "calls"}:
            self._observed, driver.observe = driver.observe, self._observe
        if wanted.what & {"exits", "switches", "patches"}:
            self._around, driver.around = driver.around, self._watch
        code = getattr(driver, "code", None)
        if code is not None and "patches" in wanted.what:
            self._changed, code.on_change = code.on_change, self._code_changed

    def close(self) -> None:
        """Hand over the last records."""
        if self._records:
            self._take(self._records)
            self._records = []

    def _add(self, what: str, name: str, pc: int, level: int, number: int = 0, address: int = 0) -> None:
        wanted = self.wanted
        if wanted.name is not None and what != "exits" and not wanted.name.search(name):
            return
        if not wanted.first <= pc <= wanted.last or (wanted.level is not None and level != wanted.level):
            return
        records = self._records
        records.append(Record(self._now(), self.driver.engine.progress, what, name, pc, level, number, address))
        if len(records) >= _AT_ONCE:
            self.close()

    def _observe(self, name: str, number: int, error: int, pc: int, address: int) -> None:
        if self._observed is not None:
            self._observed(name, number, error, pc, address)
        what = {"interrupt": "interrupts", "system call": "calls"}.get(name, "faults" if address else "exceptions")
        if what in self.wanted.what:
            self._add(what, name, pc, self._cpu.level, number, address)

    def _code_changed(self, page: int) -> None:
        self._changed(page)
        self._page = page

    def _name(self, exit_: Exit) -> str:
        """Name of the exit that was just handled; nothing where such are not wanted."""
        exits = self.driver.exits
        if isinstance(exits, dict):
            key: object = ExitKind(exit_.kind).name
            name = str(key)
        else:
            key = id(exits.last)
            known = self._kinds.get(key)
            if known is not None:
                return known
            name = next((f"{one} ({route})" for (one, route), cell in exits.cells.items() if cell is exits.last), "")
        if key not in self._kinds:
            pattern = self.wanted.name
            self._kinds[key] = name if pattern is None or pattern.search(name) else ""
        return self._kinds[key]

    def _watch(self, handler: Handler) -> Handler:
        inner = handler if self._around is None else self._around(handler)
        driver, cpu, what = self.driver, self._cpu, self.wanted.what
        space = _SPACES.get(driver.machine.platform.isa) if "switches" in what and hasattr(driver, "vcpu") else None
        code = getattr(driver, "code", None) if "patches" in what else None
        exits = "exits" in what
        last = space(cpu) if space is not None else 0
        translated = (code.translations, code.sites) if code is not None else (0, 0)

        def handle(exit_: Exit) -> None:
            nonlocal last, translated
            pc, level = driver.pc, cpu.level
            inner(exit_)
            if exits:
                name = self._name(exit_)
                if name:
                    self._add("exits", name, pc, level)
            if space is not None:
                now = space(cpu)
                if now != last:
                    last = now
                    self._add("switches", f"address space {now:#x}", pc, level, now)
            if code is not None and code.translations != translated[0]:
                self._add("patches", "page translated", pc, level, code.sites - translated[1], self._page)
                translated = code.translations, code.sites

        return handle
