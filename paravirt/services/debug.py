"""A debugger's view of a guest: memory by both kinds of addresses, stops, and going backwards.

Room: `paravirt/services`. Who speaks to a debugger, or is one (`bt.gdb`, `bt.api`), says how an address is translated:
that is the instruction set's. What is read is the guest's own memory; kernel code that executes rewritten is shown as
it was unless `rewritten` is set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from emulator.errors import UsageError, VerifyFailed
from emulator.machine import Outcome
from emulator.memory import PAGE_SIZE
from paravirt.hypervisor import Hypervisor
from paravirt.services.breakpoints import Stop, StopKind, Stops
from paravirt.services.positions import Position
from paravirt.services.timeline import Timeline

Translate = Callable[[int], int | None]
"""Guest-physical address of a guest-virtual one, None where nothing is mapped; changes nothing."""
_MOST_STEPS: Final = 64


class Debugger:
    """One guest under observation."""

    def __init__(self, driver: Any, translate: Translate, *, reverse: bool = False) -> None:
        """`reverse` keeps a history, in which one can go back. Raises `UsageError` for a machine that cannot be
        watched, or has no history."""
        self.driver = driver
        self.memory = driver.machine.memory
        self.translate = translate
        self.stops = Stops(driver)
        self.rewritten = False
        """Show kernel code as it executes."""
        self.physical = False
        """Addresses of memory are guest-physical."""
        self.timeline = Timeline(driver) if reverse else None
        if reverse:
            self.stops._begun = True
        self._exact = True
        """The timeline knows where in its block the guest is."""
        self._ended: Outcome | None = None
        """How the guest has ended, where there is no timeline to know it."""

    # -- memory ---------------------------------------------------------------------------------

    def place(self, address: int) -> int | None:
        """Where in the guest's memory an address lies, guest-physical; None for what is no memory."""
        found = address if self.physical else self.translate(address)
        return found if found is not None and self.memory.base <= found < self.memory.end else None

    def read(self, address: int, size: int) -> bytes:
        """Bytes at an address, up to the first that are not there."""
        parts: list[bytes] = []
        while size > 0:
            count = min(size, PAGE_SIZE - address % PAGE_SIZE)
            part = self._read_page(address, count)
            if not part:
                break
            parts.append(part)
            address, size = address + count, size - count
        return b"".join(parts)

    def _read_page(self, address: int, count: int) -> bytes:
        if self.rewritten and not self.physical and isinstance(self.driver, Hypervisor):
            shown = self._executed(address, count)
            if shown:
                return shown
        place = self.place(address)
        return b"" if place is None else bytes(self.memory.read_bytes(place, count))

    def _executed(self, address: int, count: int) -> bytes:
        """Bytes within a page as the kernel executes them; nothing where it executes none."""
        driver = self.driver
        window = driver.code.window_bytes()
        offset = address - driver.WINDOW.base
        if 0 <= offset < len(window):
            return bytes(window[offset : offset + count])
        place = self.translate(address)
        if place is None:
            return b""
        copy = driver.code.copy_of(address & ~(PAGE_SIZE - 1), (place - self.memory.base) // PAGE_SIZE)
        return b"" if copy is None else bytes(copy[address % PAGE_SIZE : address % PAGE_SIZE + count])

    def write(self, address: int, data: bytes) -> None:
        """Store bytes. Raises `UsageError` where there is no memory; nothing is stored then."""
        pieces: list[tuple[int, bytes]] = []
        at = 0
        while at < len(data):
            count = min(len(data) - at, PAGE_SIZE - (address + at) % PAGE_SIZE)
            place = self.place(address + at)
            if place is None:
                raise UsageError(f"the guest has no memory at {address + at:#x}; give another address")
            pieces.append((place, data[at : at + count]))
            at += count
        for place, piece in pieces:
            if isinstance(self.driver, Hypervisor):
                self.driver.vcpu.forget_writes()
                self.driver.vcpu.before_write((place - self.memory.base) // PAGE_SIZE)
            self.memory.write_bytes(place, piece)
        self.driver.engine.flush_code()
        self.changed()

    def changed(self) -> None:
        """The guest was changed by hand: its history goes on from here."""
        self._ended = None
        self.driver.asleep = False
        if self.timeline is not None:
            self._leave_block()
            self.timeline.diverge()
            self._exact = False

    # -- going ----------------------------------------------------------------------------------

    def go(self) -> Stop:
        """Run to the next stop."""
        return self._forward(self.stops.go)

    def step(self) -> Stop:
        """Do one instruction."""
        return self._forward(self.stops.step)

    def _forward(self, act: Callable[[], Stop]) -> Stop:
        """Go on; a guest that has ended does not."""
        timeline = self.timeline
        ended = self._ended if timeline is None else timeline.ended
        if ended is not None:
            return Stop(StopKind.ENDED, self.driver.pc, ended)
        self._leave_block()
        stop = act()
        self._exact = False
        if stop.outcome is not None and stop.outcome.final:
            if timeline is None:
                self._ended = stop.outcome
            else:
                timeline.ended = stop.outcome
        return stop

    def _leave_block(self) -> None:
        """Behind a way back the guest may be within a block: let it go on from there."""
        timeline = self.timeline
        if timeline is not None and timeline._block is not None:
            steps = timeline.position.steps
            timeline._block, timeline._steps = None, 0
            if steps:
                timeline.engine.count_again()

    @property
    def position(self) -> Position | None:
        """Where in its history the guest is; None without one."""
        return None if self.timeline is None else self._settled().position

    def _settled(self) -> Timeline:
        """The timeline, which knows where it is: after a run, find the instruction in its block."""
        timeline = self.timeline
        if timeline is None:
            raise UsageError("no history of this guest is kept; begin with --reverse to be able to go back")
        if self._exact:
            return timeline
        driver = self.driver
        self.stops.clear_observers()
        progress, pc, state = timeline.engine.progress_state.done, driver.pc, driver.state
        here = timeline.loose_checkpoint()
        timeline.put_back(timeline.checkpoints.before(Position(progress)))
        timeline.goto(Position(progress))
        if driver.state != state:
            block = timeline.loose_checkpoint()
            seen: list[int] = []
            timeline.watch_block(lambda _: False, begins=seen.append)
            timeline.put_back(block)
            for step in [number for number, address in enumerate(seen) if address == pc and number]:
                timeline._into_block(step)
                if driver.state == state:
                    break
                timeline.put_back(block)
            else:
                timeline.put_back(here)
                raise VerifyFailed(f"the guest's history has no such moment as this, at {pc:#x}; it goes on forwards")
        self._exact = True
        return timeline

    def step_back(self) -> Stop:
        """Undo one instruction."""
        timeline = self._settled()
        for _ in range(_MOST_STEPS):
            if timeline.position <= timeline.start:
                return Stop(StopKind.BEGINNING, self.driver.pc)
            timeline.step_back()
            if not self.driver._in_fixup(self.driver.pc):
                break
        return Stop(StopKind.STEP, self.driver.pc)

    def go_back(self) -> Stop:
        """Go back to the last moment at which something that is set would have stopped the guest. Raises `UsageError`
        where memory is watched for being read: what was read leaves no trace in the history."""
        if self.stops.watched_for_reads:
            raise UsageError("rwatch and awatch work forwards only; delete them before you go back")
        timeline = self._settled()
        here = timeline.position
        found: list[tuple[Position, Stop]] = []
        addresses = self.stops.addresses
        if addresses:
            position = timeline.find_previous(addresses)
            if position is not None:
                found.append((position, Stop(StopKind.BREAKPOINT, self.driver.pc)))
                timeline.goto(here)
        for name, physical, size in self.stops.watched:
            position = timeline.find_previous_write(physical, size)
            if position is not None:
                found.append((position, Stop(StopKind.WATCHPOINT, name)))
                timeline.goto(here)
        if not found:
            timeline.goto(timeline.start)
            return Stop(StopKind.BEGINNING, self.driver.pc)
        position, stop = max(found, key=lambda one: one[0])
        timeline.goto(position)
        return stop

    def close(self) -> None:
        """Take all stops away."""
        self.stops.clear()
        if self.timeline is not None:
            self.timeline.close()
