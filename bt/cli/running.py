"""One run of a guest on the terminal, whatever command began it: its files, its screen, its end and its exit status.

Room: the command line. What runs is a `bt.session.Session`; this module gives it a screen, a keyboard, signals and
files, and makes of the way it ended an exit status and at most one sentence.
"""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bt.cli.services import Services
    from bt.image import Image
    from bt.report.run import Ending
    from bt.session import Options, Session
    from bt.terminal import Keyboard, Screen, Signals
    from bt.tracefile import TraceFile
    from emulator.machine import Outcome


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for, beside the session's options."""

    until: str | None
    exits: bool
    trace: Path | None
    result: Path | None
    inputs: tuple[Path, ...]
    """Files that are read, and so not written."""
    services: Services | None = None
    """Snapshots and recordings that are made in the run."""
    trace_filter: str | None = None


@dataclass(slots=True)
class Run:
    """One run, from opening its files to its exit status."""

    image: Image
    options: Options
    request: Request
    _screen: Screen = field(init=False)
    _session: Session = field(init=False)

    def status(self) -> int:
        """Run the guest; the exit status of the process. Raises what `bt.cli.errors` reports."""
        from bt import progress
        from bt.cli.errors import report
        from bt.output import check, check_names
        from bt.terminal import Keyboard, Screen, Signals, descriptor_of
        from bt.tracefile import open_trace

        request, services = self.request, self.request.services
        made = (services.to, services.record) if services is not None else ()
        check_names((request.result, request.trace, *made), request.inputs)
        check((request.result,))
        trace = open_trace(request.trace, request.inputs, request.trace_filter) if request.trace is not None else None
        try:
            until = (request.until or "").encode("utf-8", "surrogateescape")
            self._screen = Screen(descriptor_of(sys.stdout), until, self._reached)
            with progress.stage(f"loading {self.request.inputs[0]}"):
                self._session = self._open()
            self._tell_engine()
            try:
                keyboard = Keyboard(descriptor_of(sys.stdin), lambda: self._end(0))
                signals = Signals(
                    keyboard, self._end, self._session.machine.engine.stop, self.options.limits.host_seconds
                )
                return self._run(keyboard, signals, trace)
            finally:
                self._session.close()
        except BrokenPipeError as error:
            return report(error)  # click would make a failure of it
        finally:
            if trace is not None:
                trace.close()
            if services is not None:
                services.close()

    def _open(self) -> Session:
        """The session, printing to the screen."""
        from bt.session import Session

        services = self.request.services
        write = self._write if services is not None and services.wanted else self._screen.write
        return Session(self.image, self.options, write)

    def _write(self, data: bytes) -> None:
        """The guest prints."""
        self._screen.write(data)
        if self.request.services is not None:
            self.request.services.write(data)

    def _tell_engine(self) -> None:
        """Where the engine was left to us, say which it is, and why no faster one."""
        from emulator.engine.engines import AUTO

        if self.options.engine == AUTO:
            name = self._session.machine.engine.capabilities.name
            reasons = "".join(f"; {reason}" for reason in self._session.passed_over)
            click.echo(f"retrap: the engine is {name}{reasons}", err=True)

    def _run(self, keyboard: Keyboard, signals: Signals, trace: TraceFile | None) -> int:
        from bt.report.run import Ending
        from emulator.errors import INTERNAL_ERROR, INTERRUPTED, RetrapError

        session, began = self._session, time.monotonic()
        outcome: Outcome | None = None
        ending: Ending | None = None
        try:
            try:
                with signals, keyboard:
                    self._connect(keyboard, signals, trace)
                    outcome = session.run()
                    if self.request.services is not None:
                        self.request.services.end(outcome)
            finally:
                seconds = time.monotonic() - began
                self._screen.flush()
            status = self._verdict(outcome, signals)
            ending = Ending(outcome, "", status, seconds)
            return status
        except RetrapError as error:
            ending = Ending(outcome, str(error), error.exit_status, seconds, getattr(error, "last", {}))
            raise
        except BaseException as error:
            status = INTERRUPTED if isinstance(error, KeyboardInterrupt) else INTERNAL_ERROR
            ending = Ending(outcome, f"{type(error).__name__}: {error}", status, seconds)
            raise
        finally:
            if ending is not None:
                self._report(ending)

    def _connect(self, keyboard: Keyboard, signals: Signals, trace: TraceFile | None) -> None:
        from bt.terminal import Typed

        machine, screen = self._session.machine, self._screen
        board = machine.board
        typed = Typed(keyboard, board.com1, lambda: board.next_wake() is not None)

        def asked() -> bool:
            screen.flush()
            if signals.received is not None:
                self._end(signals.received)  # again, for one that came before the run
            return self._session.driver.outcome is not None

        machine.poll_input = typed.poll
        machine.stop_when = asked
        if self.request.services is not None and self.request.services.wanted:
            self.request.services.begin(self._session)
        if trace is not None:
            trace.attach(self._session.driver)
        if keyboard.interactive:
            self._say("Ctrl-A x ends the run, Ctrl-A h says more")

    def _end(self, number: int) -> None:
        """End after this exit: by a signal, or by the user's wish (0)."""
        from emulator.machine import EndKind, Outcome

        if number == signal.SIGALRM:
            limit = f"{self.options.limits.host_seconds:g} s of host time"
            self._session.driver.end(Outcome(EndKind.HOST_TIMEOUT, detail=limit))
        else:
            self._session.driver.end(Outcome(EndKind.INTERRUPTED))

    def _reached(self) -> None:
        from emulator.machine import EndKind, Outcome

        self._session.driver.end(Outcome(EndKind.STOPPED, detail="the console has printed the text"))

    def _verdict(self, outcome: Outcome, signals: Signals) -> int:
        """The exit status, or the error to report."""
        from emulator.errors import GuestFault, Timeout, VerifyFailed
        from emulator.machine import EndKind

        kind = outcome.kind
        if kind is EndKind.INTERRUPTED and signals.received is not None:
            self._say("interrupted")
            return 128 + signals.received
        if kind in (EndKind.INTERRUPTED, EndKind.STOPPED):
            return 0
        if kind is EndKind.TRIPLE_FAULT:
            raise GuestFault(self._lost(outcome.detail))
        if kind is EndKind.CRASHED:
            raise GuestFault(f"the guest crashed at {self._place()}: {outcome.detail}")
        if kind in (EndKind.GUEST_TIMEOUT, EndKind.HOST_TIMEOUT):
            raise Timeout(f"the guest did not end within {outcome.detail}; it was at {self._place()}")
        if self.request.until is not None:
            raise VerifyFailed(f"the guest ended ({kind.value}) and had not printed {self.request.until!r}")
        if kind is EndKind.HALTED:
            self._say(f"the guest {outcome.detail}, at {self._place()}")
        if kind is EndKind.RESET:
            self._say("the guest reset the machine, which ends a run")
        if outcome.status:
            self._say(f"the guest ended itself with status {outcome.status}")
        return outcome.status & 0xFF or min(outcome.status, 0xFF)

    def _lost(self, detail: str) -> str:
        return f"the guest is lost at {self._place()}: triple fault, {detail}"

    def _place(self) -> str:
        """Where the guest is: address and symbol."""
        from emulator.errors import BadImage

        address = self._session.driver.pc
        try:
            name = self._session.symbol(address)
        except BadImage:
            name = ""  # its symbols are damaged, which is not what this is about
        return f"{address:#x}" + (f" ({name})" if name and name != f"{address:#x}" else "")

    def _say(self, sentence: str) -> None:
        if sys.stderr is not None:
            print(f"retrap: {sentence}", file=sys.stderr, flush=True)

    def _report(self, ending: Ending) -> None:
        from bt.output import write
        from bt.report import run as report
        from bt.report.json import dumps

        if self._screen.in_line and sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write("\n")
        if self.request.exits and sys.stderr is not None:
            report.print_exits(self._session, ending.seconds, timed=self.options.timed)
        if self.request.result is not None:
            value = report.as_json(self._session, ending, self._screen.sha256, self._screen.size)
            write(self.request.result, dumps(value).encode(), self.request.inputs[0])
