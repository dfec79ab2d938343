"""When a snapshot is taken of a guest that runs: at a time, or when something happens for the first time.

Room: `bt`. What is waited for is noticed wherever it happens; the snapshot is taken before the guest's next block, or
at the next tick where an engine cannot be stopped so exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from emulator.errors import UsageError
from paravirt.services.machine_state import refusal, settled

if TYPE_CHECKING:
    from bt.session import Session
    from paravirt.hypervisor import Hypervisor

USER, INPUT, CONSOLE = "user", "input", "console:"
FORMS = 'a time of the guest as 2.5s, "user" (user code runs), "input" (it waits for input), or "console:TEXT"'


@dataclass(frozen=True, slots=True)
class Moment:
    """What is waited for: exactly one of these."""

    seconds: float | None = None
    event: str = ""
    """USER or INPUT."""
    text: bytes = b""
    """What the console prints."""


def moment_of(text: str) -> Moment:
    """What `--snapshot-at` says. Raises `UsageError` for what is no moment."""
    if text in (USER, INPUT):
        return Moment(event=text)
    if text.startswith(CONSOLE) and len(text) > len(CONSOLE):
        return Moment(text=text[len(CONSOLE) :].encode("utf-8", "surrogateescape"))
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?s?", text) and math.isfinite(float(text.rstrip("s"))):
        return Moment(seconds=float(text.rstrip("s")))
    raise UsageError(f"--snapshot-at {text}: is no moment; give {FORMS}")


class Waiting:
    """Waits for a moment in a session's run, and has something done there, once."""

    def __init__(self, session: Session, moment: Moment, act: Callable[[], None]) -> None:
        """To be made when the machine polls for input already. Raises `UsageError` for a guest that cannot be saved."""
        why = refusal(session.driver)
        if why:
            raise UsageError(why)
        self._driver = cast("Hypervisor", session.driver)
        self._machine = session.machine
        self._moment, self._act = moment, act
        self._printed = b""
        self._due = self.done = self._over = False
        self._before = self._driver.on_tick
        self._driver.on_tick = self._tick
        if moment.seconds is not None and self._driver.engine.capabilities.pauses_exactly:
            # An idle guest's time may be there earlier: then the next tick notices.
            engine: Any = self._driver.engine
            engine.pause_at(self._machine.clock.progress_at(int(moment.seconds * 1e9)), self.come)
        elif moment.event == USER:
            self._observe()
        elif moment.event == INPUT:
            self._poll = self._machine.poll_input
            if self._poll is not None:
                self._machine.poll_input = self._polled

    def printed(self, data: bytes) -> None:
        """The guest prints."""
        text = self._moment.text
        if text and not self._due:
            self._printed = self._printed[-len(text) :] + data
            if text in self._printed:
                self.come()

    def come(self) -> None:
        """The moment has come: act before the guest's next block."""
        if self._due:
            return
        self._due = True
        engine: Any = self._driver.engine
        if engine.capabilities.pauses_exactly:
            engine.pause_at(engine.progress, self._now)

    def _now(self) -> None:
        """Between two blocks."""
        if self.done:
            return
        if settled(self._driver):
            self.done = True
            self._act()
        elif self._driver.engine.capabilities.pauses_exactly:
            engine: Any = self._driver.engine
            engine.pause_at(engine.progress + 1, self._now)

    def _tick(self) -> None:
        if self._before is not None:
            self._before()
        seconds = self._moment.seconds
        if seconds is not None and self._machine.clock.now() >= seconds * 1e9:
            self._due = True
        if self._due:
            self._now()

    def _observe(self) -> None:
        before = self._driver.observe

        def observe(name: str, number: int, error: int, pc: int, address: int) -> None:
            if before is not None:
                before(name, number, error, pc, address)
            if name == "system call" or self._driver.vcpu.level == self._driver.USER_LEVEL:
                self._driver.observe = before
                self.come()

        self._driver.observe = observe

    def _polled(self, seconds: float) -> bytes | None:
        assert self._poll is not None
        board: Any = self._machine.board
        line = getattr(board, "com1", None) or getattr(board, "uart", None)
        if seconds and not self.done and line is not None and line.listening and not line.unread:
            # The guest idles and wants input: it gets none before the snapshot is taken.
            self.come()
            return b""
        if self.done:
            self._machine.poll_input = self._poll
        data = None if self._over else self._poll(seconds)
        if data is None:
            self._over = True
            # Nothing will come; but to see the guest wait for it, we must be asked again.
            return None if self.done or board.next_wake() is None else b""
        return data


__all__ = ["Moment", "Waiting", "moment_of"]
