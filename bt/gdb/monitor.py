"""What gdb's `monitor` can ask of the hypervisor: exits, page walks, tables, the virtual CPU, patches, tracing.

Room: `bt/gdb`. A row of the table is a command; nothing here changes the guest.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emulator.errors import UsageError
from paravirt.hypervisor import Hypervisor
from paravirt.mmu.shadow import ShadowPaging

if TYPE_CHECKING:
    from bt.gdb.targets import Mapped, Target
    from bt.session import Session
    from bt.tracefile import TraceFile
    from paravirt.services.debug import Debugger

_MOST_LINES: Final = 4000


class Monitor:
    """Answers the commands of one session."""

    def __init__(self, session: Session, debugger: Debugger, target: Target, symbols: str = "") -> None:
        """`symbols` is what is said of the file with symbols."""
        self.session = session
        self.debugger = debugger
        self.target = target
        self.symbols = symbols
        self._trace: TraceFile | None = None

    def __call__(self, line: str) -> str:
        """Do a command; its answer. Raises `UsageError` for one that there is not."""
        words = line.split()
        name = words[0] if words else "help"
        found = [command for command in COMMANDS if command == name] or [c for c in COMMANDS if c.startswith(name)]
        if len(found) != 1:
            raise UsageError(f"there is no monitor command {name!r}; those there are: {', '.join(COMMANDS)}")
        return "".join(f"{one}\n" for one in COMMANDS[found[0]][0](self, words[1:]))

    def close(self) -> None:
        """Close what was opened."""
        if self._trace is not None:
            self.session.driver.trace = None
            self._trace.close()
            self._trace = None

    # -- commands -------------------------------------------------------------------------------

    def _help(self, _words: list[str]) -> Iterator[str]:
        for name, (_, line) in COMMANDS.items():
            yield f"{name:<12}{line}"

    def _exits(self, _words: list[str]) -> Iterator[str]:
        exits: Any = self.session.driver.exits
        if isinstance(exits, dict):
            yield from (f"{count:>12}  {name}" for name, count in sorted(exits.items(), key=lambda one: -one[1]))
            return
        for operation, route, count, share, _ in exits.rows():
            yield f"{count:>12} {share:>6.1%}  {operation} ({route})"
        yield f"{exits.total:>12}         in all"

    def _walk(self, words: list[str]) -> Iterator[str]:
        address = self._address(words)
        walk = self.target.walk(self.session.driver, address)
        for step in walk.steps:
            yield f"level {step.level}: entry at guest-physical {step.physical:#x} is {step.value:#x}"
        if walk.physical is None:
            place = None if walk.steps else self.debugger.translate(address)
            if place is None:
                yield f"{address:#x} is not mapped by the guest"
            else:
                yield f"{address:#x} is guest-physical {place:#x} by where the image was placed; no tables are known"
            return
        yield f"{address:#x} is guest-physical {walk.physical:#x}"
        shadow = getattr(self.session.driver, "shadow", None)
        if isinstance(shadow, ShadowPaging):
            at = shadow._leaf_of(address)
            entry = int(shadow._words[at]) if at >= 0 else 0
            kind = ("kernel", "user")[shadow.view]
            yield f"shadow entry in the {kind} view: " + (
                f"{entry:#x}" if entry else "none; it is made when it is used"
            )

    def _tables(self, words: list[str]) -> Iterator[str]:
        if self.target.mappings is None:
            raise UsageError(f"the tables of {self.target.architecture} guests cannot be listed; use `monitor walk`")
        first = self._address(words) if words else 0
        lines = 0
        for one in _joined(self.target.mappings(self.session.driver)):
            if one.address + one.size <= first:
                continue
            yield f"{one.address:#018x}-{one.address + one.size - 1:#018x} -> {one.physical:#x} {one.rights}"
            lines += 1
            if lines == _MOST_LINES:
                yield f"and more: `monitor tables {one.address + one.size:#x}` goes on there"
                return

    def _cpu(self, _words: list[str]) -> Iterator[str]:
        driver: Any = self.session.driver
        processor = self.target.processor(driver)
        for row in self.target.registers:
            yield f"{row.name:<15}{row.read(processor) & (1 << row.bits) - 1:#x}"
        if isinstance(driver, Hypervisor):
            yield f"level          {driver.vcpu.level} (the real one is the lowest)"
            yield f"interrupts     {'enabled' if driver.vcpu.interrupts_enabled else 'disabled'}"
            yield f"time           {driver.machine.clock.now() / 1e9:.9f} s"
            yield f"position       {driver.engine.progress}"

    def _sites(self, words: list[str]) -> Iterator[str]:
        address = self._address(words)
        driver = self.session.driver
        if not isinstance(driver, Hypervisor):
            yield "of this guest nothing is rewritten"
            return
        before = self.debugger.rewritten
        try:
            self.debugger.rewritten = False
            start, own = address - 8, self.debugger.read(address - 8, 32)
            self.debugger.rewritten = True
            executed = self.debugger.read(address - 8, 32)
        finally:
            self.debugger.rewritten = before
        yield f"original  at {start:#x}: {own.hex(' ')}"
        yield f"executed  at {start:#x}: {executed.hex(' ')}" + ("" if own != executed else " (the same)")
        for fixup, site in sorted(driver.code.fixup_sites.items()):
            if address - 16 < site < address + 16:
                yield f"site {site:#x} ({self.session.symbol(site)}): fixup at {fixup:#x}"
        if driver._in_fixup(address):
            starts = sorted(driver.code.fixup_sites)
            number = bisect_right(starts, address) - 1
            if number >= 0:
                yield f"{address:#x} is in the fixup of {driver.code.fixup_sites[starts[number]]:#x}"

    def _text(self, words: list[str]) -> Iterator[str]:
        self.debugger.rewritten = _one_of(words, ("original", "rewritten")) == "rewritten"
        yield f"gdb is shown the kernel's code as it {'executes' if self.debugger.rewritten else 'was'}"

    def _physical(self, words: list[str]) -> Iterator[str]:
        self.debugger.physical = _one_of(words, ("on", "off")) == "on"
        yield f"addresses of memory are guest-{'physical' if self.debugger.physical else 'virtual'}"

    def _tracing(self, words: list[str]) -> Iterator[str]:
        from bt.tracefile import TraceFile

        if _one_of(words[:1], ("on", "off")) == "off":
            self.close()
            yield "no trace is written"
            return
        if len(words) != 2:
            raise UsageError("say where to: `monitor trace on FILE`")
        trace = TraceFile(Path(words[1]), (Path(self.session.image_file),))
        self.close()
        self._trace = trace
        self.session.driver.trace = trace.write
        yield f"every exit is written to {words[1]}"

    def _position(self, _words: list[str]) -> Iterator[str]:
        position = self.debugger.position
        yield str(position if position is not None else self.session.driver.engine.progress)

    def _symbols(self, _words: list[str]) -> Iterator[str]:
        yield self.symbols or "no symbol file was written"

    def _address(self, words: list[str]) -> int:
        if len(words) != 1:
            raise UsageError("give one address, in hexadecimal with 0x, or a symbol")
        row = self.target.by_name.get(words[0][1:]) if words[0].startswith("$") else None
        if row is not None:
            return row.read(self.target.processor(self.session.driver))
        try:
            return int(words[0], 0) & (1 << 64) - 1
        except ValueError:
            found = self.session.image.symbols.address_of(words[0])
            if found is None:
                raise UsageError(f"{words[0]!r} is neither an address nor a symbol of the image") from None
            return found + self.session.options.delta


def _one_of(words: list[str], choices: tuple[str, ...]) -> str:
    if len(words) != 1 or words[0] not in choices:
        raise UsageError(f"say one of: {', '.join(choices)}")
    return words[0]


def _joined(pages: Iterator[Mapped]) -> Iterator[Mapped]:
    """Pages that lie behind one another in both kinds of memory, as one."""
    last: Mapped | None = None
    for page in pages:
        if last is not None and (page.address, page.physical, page.rights) == (
            last.address + last.size,
            last.physical + last.size,
            last.rights,
        ):
            last = last._replace(size=last.size + page.size)
        else:
            if last is not None:
                yield last
            last = page
    if last is not None:
        yield last


COMMANDS: Final[dict[str, tuple[Callable[[Monitor, list[str]], Iterator[str]], str]]] = {
    "help": (Monitor._help, "this list"),
    "exits": (Monitor._exits, "exits so far, by operation and route"),
    "walk": (Monitor._walk, "ADDRESS: from guest-virtual to guest-physical to the shadow entry"),
    "tables": (Monitor._tables, "[FROM]: all that the guest's page tables map"),
    "cpu": (Monitor._cpu, "the virtual CPU"),
    "sites": (Monitor._sites, "ADDRESS: patches there, original and executed bytes"),
    "text": (Monitor._text, "original|rewritten: how gdb sees the kernel's code"),
    "physical": (Monitor._physical, "on|off: addresses of memory are guest-physical"),
    "trace": (Monitor._tracing, "on FILE|off: write a line for every exit"),
    "position": (Monitor._position, "where in its history the guest is (`retrap goto`)"),
    "symbols": (Monitor._symbols, "where the symbol file is"),
}
"""Name -> what does it and one line of help."""
