"""What `retrap run` and its kin do besides running: snapshots at a moment, a kept one for the next time, a recording.

Room: the command line. A `Services` is told what the guest prints, when a run begins, and how it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

if TYPE_CHECKING:
    from bt.session import Session
    from bt.snapshot_moment import Moment, Waiting
    from emulator.errors import Unwritable
    from emulator.machine import Outcome
    from paravirt.hypervisor import Hypervisor
    from paravirt.services.record import Recorder
    from paravirt.services.recording import Writer
    from paravirt.services.snapshot import Snapshot


@dataclass(slots=True)
class Services:
    """What is wanted of one run."""

    at: Moment | None = None
    """When a snapshot is taken, of the file below."""
    to: Path | None = None
    parent: Path | None = None
    warm: Path | None = None
    """Where a snapshot of the booted kernel is kept for the next time; it is made in this run."""
    record: Path | None = None
    initrd: Path | None = None
    inputs: tuple[Path, ...] = ()
    """Files that are read, and so not written."""
    printed: bytearray = field(default_factory=bytearray)
    """The last of what the guest has printed."""
    _waiting: list[Waiting] = field(default_factory=list)
    _hear: list[Callable[[bytes], None]] = field(default_factory=list)
    _recorder: Recorder | None = None
    _writer: Writer | None = None
    _missed: Unwritable | None = None
    """Why the snapshot that was asked for could not be written when its moment had come."""

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.to or self.warm or self.record)

    def check(self) -> None:
        """Refuse before the run what could not be done in it. Raises `UsageError`, of a file `Unwritable`."""
        from bt.output import check, check_names
        from emulator.errors import Unwritable, UsageError

        if (self.at is None) != (self.to is None):
            raise UsageError("--snapshot-at and --to belong together: give a moment and a file")
        if self.parent is not None and self.to is None:
            raise UsageError("--parent is of a snapshot that is taken; give --snapshot-at and --to as well")
        check_names((self.to, self.record), (*self.inputs, self.parent))
        check((self.to,))
        if self.to is not None and self.to.exists() and not self.to.is_file():
            raise Unwritable(f"{self.to}: cannot be written (a snapshot is a file of its own); name a file")

    def find_warm(self, kernel: Path, given: Mapping[str, Any]) -> Snapshot | None:
        """The kept snapshot of a guest started so; where there is none it is made in this run."""
        from bt import warm
        from emulator.errors import UsageError

        try:
            place = warm.place_of(kernel, self.initrd, given)
        except OSError as error:
            raise UsageError(f"{error.filename}: cannot be read ({error.strerror}); name a file that can") from None
        found = warm.find(place)
        if found is None:
            try:
                warm.make_room(place)
            except OSError as error:
                click.echo(f"retrap: nothing is kept for the next --warm: {place.parent}: {error.strerror}", err=True)
            else:
                self.warm = place
        return found

    def write(self, data: bytes) -> None:
        """The guest prints."""
        from bt.snapshot import CONSOLE_KEPT

        self.printed += data
        if len(self.printed) > 2 * CONSOLE_KEPT:
            del self.printed[:-CONSOLE_KEPT]
        for hear in self._hear:
            hear(data)

    def begin(self, session: Session) -> None:
        """A run begins; the machine polls for input already."""
        from bt.snapshot_moment import INPUT, USER, Moment, Waiting

        if self.record is not None:
            self._record(session, self.record)
        if self.at is not None and self.to is not None:
            to, parent = self.to, self._parent()
            self._wait(Waiting(session, self.at, lambda: self._save(session, to, parent)))
        if self.warm is not None:
            warm = self.warm
            for event in (USER, INPUT):
                self._wait(Waiting(session, Moment(event=event), lambda: self._save(session, warm, None)))

    def _wait(self, waiting: Waiting) -> None:
        self._waiting.append(waiting)
        self._hear.append(waiting.printed)

    def _parent(self) -> Any:
        from paravirt.services.snapshot import Snapshot

        return None if self.parent is None else Snapshot(self.parent)

    def _save(self, session: Session, path: Path, parent: Any) -> None:
        """Take the snapshot. A full disk costs the guest nothing: it goes on, and who is there is told."""
        from bt.snapshot import save_session
        from emulator.errors import Unwritable

        try:
            save_session(session, path, bytes(self.printed), parent)
        except Unwritable as error:
            if path == self.to:
                self._missed = error  # told at the end, as the run's own failure
            else:
                click.echo(f"retrap: nothing is kept for the next --warm: {error}", err=True)

    def _record(self, session: Session, path: Path) -> None:
        from bt.recorded import described
        from emulator.errors import UsageError
        from paravirt.services.record import Console, Recorder, cannot_repeat
        from paravirt.services.recording import Writer

        why = cannot_repeat(session.driver)
        if why:
            raise UsageError(why)
        self._writer = Writer(path, described(session, self.initrd))
        console = Console()
        self._hear.append(console)
        self._recorder = Recorder(cast("Hypervisor", session.driver), self._writer, console)

    def end(self, outcome: Outcome) -> None:
        """The run ended. Raises `VerifyFailed` where the moment of a snapshot did not come, `Unwritable` where it could
        not be written then."""
        from emulator.errors import VerifyFailed

        if self._recorder is not None:
            self._recorder.end(outcome)
        if self._missed is not None:
            raise self._missed
        if self.to is not None and self._waiting and not self._waiting[0].done:
            raise VerifyFailed(
                f"the guest ended ({outcome.kind.value}) before the moment of the snapshot {self.to} came"
            )

    def close(self) -> None:
        """Close what was opened."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
