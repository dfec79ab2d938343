"""The Python interface: open an image, run it to where something happens, look at it, change it, keep it.

Room: `bt`. A `Guest` is a session under a debugger (`paravirt.services.debug`), in this process. docs/api.md has
examples, which the tests execute. All names here are also `bt`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from bt.gdb.targets import Target, target_for, translation
from bt.session import Options, Session
from emulator.engine.exit import Exit, ExitKind, describe
from emulator.engine.protocol import Handler
from emulator.errors import UsageError
from emulator.machine import EndKind, Outcome
from paravirt.services.breakpoints import Stop, StopKind
from paravirt.services.debug import Debugger
from paravirt.services.positions import Position, position_of

_HERE = Outcome(EndKind.STOPPED, detail="what was waited for has happened")
EVENTS = ("interrupt", "exception", "system call")
"""What `Guest.run` can wait for as an event."""


class Seen(NamedTuple):
    """An exit of the guest to the hypervisor."""

    kind: str
    """As `emulator.engine.exit.ExitKind` calls it."""
    pc: int
    """Guest-virtual address at which the guest was."""
    level: int
    """The guest's privilege level."""
    text: str
    """All of it, for people."""


class Registers(MutableMapping[str, int]):
    """The registers of the guest's processor by name, as gdb calls them."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def __getitem__(self, name: str) -> int:
        guest = self._guest
        row = guest.target.by_name[name]
        return row.read(guest.target.processor(guest.session.driver)) & (1 << row.bits) - 1

    def __setitem__(self, name: str, value: int) -> None:
        guest = self._guest
        row = guest.target.by_name[name]
        order: Literal["big", "little"] = "big" if guest.target.byte_order == "big" else "little"
        data = (value & (1 << row.bits) - 1).to_bytes(row.bits // 8, order)
        guest.target.write(guest.session.driver, row, data)
        guest.debugger.changed()

    def __delitem__(self, name: str) -> None:
        raise TypeError("a processor keeps its registers")

    def __iter__(self) -> Iterator[str]:
        return iter(self._guest.target.by_name)

    def __len__(self) -> int:
        return len(self._guest.target.by_name)


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A breakpoint that is set."""

    guest: Guest
    address: int
    """Guest-virtual."""

    def remove(self) -> None:
        """Take it away."""
        self.guest.debugger.stops.remove_breakpoint(self.address)


class Guest:
    """A guest that stands. A context manager: the end of the block releases it."""

    def __init__(self, session: Session, *, reverse: bool = False) -> None:
        """Use `open_guest` or `resume`."""
        self.session = session
        self.target: Target = target_for(session)
        self.debugger = Debugger(session.driver, translation(session), reverse=reverse)
        self.registers = Registers(self)
        self.console = bytearray()
        """Everything that the guest has printed."""
        self._text = b""

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the engine. The guest is gone."""
        self.session.close()

    # -- running --------------------------------------------------------------------------------

    def run(
        self,
        to: str | int | None = None,
        *,
        text: str | bytes | None = None,
        event: str | None = None,
        when: Callable[[Guest], object] | None = None,
        seconds: float | None = None,
    ) -> Stop:
        """Run until the first of these happens, a breakpoint is reached, or the guest ends.

        `to`: the instruction at a symbol or guest-virtual address is about to begin. `text`: the console has printed
        this since. `event`: the guest takes one of `EVENTS`. `when`: asked behind every exit, gives True. `seconds` of
        the guest's time have passed since it began.
        """
        if event is not None and event not in EVENTS:
            raise UsageError(f"there is no event {event!r}; those there are: {', '.join(EVENTS)}")
        driver, stops = self.session.driver, self.debugger.stops
        address = None if to is None else self.address(to)
        own = address is not None and address not in stops.addresses
        if address is not None and own:
            stops.set_breakpoint(address)
        self._text = text.encode() if isinstance(text, str) else text or b""
        self._from = len(self.console)
        before, around = driver.observe, driver.around

        def observe(name: str, number: int, error: int, pc: int, at: int) -> None:
            if before is not None:
                before(name, number, error, pc, at)
            if name == event:
                driver.end(_HERE)

        def watch(handler: Handler) -> Handler:
            inner = handler if around is None else around(handler)
            clock = self.session.machine.clock

            def handle(exit_: Exit) -> None:
                inner(exit_)
                if (when is not None and when(self)) or (seconds is not None and clock.now() >= seconds * 1e9):
                    driver.end(_HERE)

            return handle

        if event is not None:
            driver.observe = observe
        if when is not None or seconds is not None:
            driver.around = watch
        try:
            return self.debugger.go()
        finally:
            driver.observe, driver.around, self._text = before, around, b""
            if address is not None and own:
                stops.remove_breakpoint(address)

    def step(self, count: int = 1) -> Stop:
        """Do so many instructions, or as many as there are to the next breakpoint."""
        stop = Stop(StopKind.STEP, self.pc)
        for _ in range(count):
            stop = self.debugger.step()
            if stop.kind is not StopKind.STEP:
                break
        return stop

    def exits(self) -> Iterator[Seen]:
        """Run, and give every exit as the guest stands behind it; ends with the guest or at a breakpoint."""
        driver: Any = self.session.driver
        around = driver.around
        seen: list[Seen] = []

        def watch(handler: Handler) -> Handler:
            inner = handler if around is None else around(handler)

            def handle(exit_: Exit) -> None:
                level = getattr(getattr(driver, "vcpu", driver), "level", 0)
                seen.append(Seen(ExitKind(exit_.kind).name, driver.pc, level, describe(exit_)))
                inner(exit_)
                driver.end(_HERE)

            return handle

        while True:
            seen.clear()
            driver.around = watch
            try:
                stop = self.debugger.go()
            finally:
                driver.around = around
            yield from list(seen)
            if stop.kind is not StopKind.ASKED:
                return

    def breakpoint(self, at: str | int, call: Callable[[Guest], object] | None = None) -> Breakpoint:
        """Stop before the instruction at a symbol or address; or call something there instead, and stop where it
        gives True."""
        address = self.address(at)
        self.debugger.stops.set_breakpoint(address, None if call is None else lambda: call(self))
        return Breakpoint(self, address)

    # -- looking --------------------------------------------------------------------------------

    @property
    def pc(self) -> int:
        """Guest-virtual address of the instruction that is about to begin."""
        return self.session.driver.pc

    @property
    def time(self) -> float:
        """The guest's time since it began, seconds."""
        return self.session.machine.clock.now() / 1e9

    def address(self, name: str | int) -> int:
        """Guest-virtual address of a symbol. Raises `UsageError` where the image has none of that name."""
        if isinstance(name, int):
            return name
        found = self.session.image.symbols.address_of(name)
        if found is None:
            raise UsageError(f"{self.session.image.path} has no symbol {name!r}")
        return found + self.session.options.delta

    def name(self, address: int) -> str:
        """Symbol and distance of an address."""
        return self.session.symbol(address)

    def read(self, at: str | int, size: int, *, physical: bool = False) -> bytes:
        """Bytes of the guest's memory. Raises `UsageError` where it has none."""
        data = self._by(physical).read(self.address(at), size)
        if len(data) != size:
            raise UsageError(f"the guest has no memory at {self.address(at) + len(data):#x}; give another address")
        return data

    def write(self, at: str | int, data: bytes, *, physical: bool = False) -> None:
        """Change the guest's memory. Raises `UsageError` where it has none."""
        self._by(physical).write(self.address(at), data)

    def word(self, at: str | int) -> int:
        """The number in a word of the guest's memory, as wide as its addresses."""
        order = self.session.image.byte_order
        return int.from_bytes(self.read(at, self.target.word), "big" if order == "big" else "little")

    def _by(self, physical: bool) -> Debugger:
        self.debugger.physical = physical
        return self.debugger

    # -- keeping --------------------------------------------------------------------------------

    @property
    def position(self) -> Position | None:
        """Where in its history the guest is; None without one (`reverse`)."""
        return self.debugger.position

    def goto(self, position: Position | str) -> None:
        """Go to a position of the guest's history, forwards or backwards; needs `reverse`."""
        timeline = self.debugger._settled()
        timeline.goto(position_of(position) if isinstance(position, str) else position)

    def step_back(self) -> Stop:
        """Undo an instruction; needs `reverse`."""
        return self.debugger.step_back()

    def snapshot(self, path: str | Path) -> None:
        """Keep the guest in a file, for `resume`, here or in another process."""
        from bt.snapshot import save_session

        save_session(self.session, Path(path), bytes(self.console))

    def _printed(self, data: bytes) -> None:
        self.console += data
        if self._text and self._text in self.console[max(0, self._from) :]:
            self.session.driver.end(_HERE)


class _Console:
    """Hands on what is printed, once there is a guest."""

    guest: Guest | None = None

    def __call__(self, data: bytes) -> None:
        if self.guest is not None:
            self.guest._printed(data)


def open_guest(image: str | Path, options: Options | None = None, *, reverse: bool = False) -> Guest:
    """A guest before its first instruction. `image` is a file, or the name of a guest that was fetched; `options` as
    `bt.session.Options` has them; `reverse` keeps a history."""
    from dataclasses import replace

    from bt import guests
    from bt.image import load

    options = options or Options()
    if isinstance(image, str) and image in guests.RECIPES:
        found = guests.find(image)
        image = found.kernel
        if found.initrd is not None and not options.initrd:
            options = replace(options, initrd=found.initrd.read_bytes())
        options = replace(options, command_line=options.command_line or found.command_line)
    console = _Console()
    guest = Guest(Session(load(image), options, console), reverse=reverse)
    console.guest = guest
    return guest


def resume(snapshot: str | Path, *, reverse: bool = False) -> Guest:
    """A guest where `Guest.snapshot` has kept it."""
    from bt.snapshot import ResumedSession
    from paravirt.services.snapshot import Snapshot

    console = _Console()
    session = ResumedSession(Snapshot(Path(snapshot)), console)
    guest = Guest(session, reverse=reverse)
    guest.debugger.stops.resumed()
    console.guest = guest
    return guest


__all__ = ["EVENTS", "Breakpoint", "Guest", "Options", "Registers", "Seen", "Stop", "StopKind", "open_guest", "resume"]
