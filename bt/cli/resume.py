"""`retrap resume`: a guest goes on where a snapshot was taken of it.

Room: the command line. A run like any other (`bt.cli.running`), whose session is made of a snapshot.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import click

from bt.cli.run import ENGINE_HELP
from bt.cli.running import Request, Run

if TYPE_CHECKING:
    from bt.session import Session
    from bt.snapshot import ResumedSession
    from emulator.machine import Limits, Outcome
    from paravirt.services.snapshot import Snapshot


@click.command()
@click.argument("snapshot", type=click.Path(path_type=Path))
@click.option("--image", type=click.Path(path_type=Path), metavar="FILE", help="Where the guest's image is now.")
@click.option("--engine", metavar="NAME", help=ENGINE_HELP + " By default the one that it ran on.")
@click.option("--timeout", metavar="SECONDS", help="End the run after so much time of the host.")
@click.option("--guest-timeout", metavar="SECONDS", help="End the run at this time of the guest.")
@click.option("--until", metavar="TEXT", help="End the run when the console has printed this.")
@click.option("--exits", is_flag=True, help="Print the exit table, with times, at the end.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="FILE", help="Write a line for every exit.")
@click.option("--json", "result", type=click.Path(path_type=Path), metavar="FILE", help="Write the result as JSON.")
@click.option("--cache/--no-cache", "cached", default=True, help="Keep and use findings of earlier scans (default).")
@click.option("--snapshot-at", metavar="WHEN", help="Take another snapshot, as of `retrap run`.")
@click.option("--to", type=click.Path(path_type=Path), metavar="FILE", help="The other snapshot's file.")
@click.option(
    "--parent", type=click.Path(path_type=Path), metavar="FILE", help="Store only what this snapshot does not have."
)
@click.option(
    "--record", type=click.Path(path_type=Path), metavar="FILE", help="Write down the run for `retrap replay`."
)
def command(
    snapshot: Path,
    image: Path | None,
    engine: str | None,
    timeout: str | None,
    guest_timeout: str | None,
    until: str | None,
    exits: bool,
    trace: Path | None,
    result: Path | None,
    cached: bool,
    snapshot_at: str | None,
    to: Path | None,
    parent: Path | None,
    record: Path | None,
) -> int:
    """Go on with the guest of SNAPSHOT, which `retrap run --snapshot-at` wrote.

    The image is looked for where it was, and must be the same. What the guest had printed is not printed again, but for
    a line that was not ended.
    """
    from bt.cli import values
    from bt.cli.services import Services
    from bt.snapshot_moment import moment_of
    from emulator.errors import UsageError
    from emulator.machine import Limits
    from paravirt.services.snapshot import Snapshot

    if until == "":
        raise UsageError("--until needs a text; leave it out to run to the guest's end")
    limits = Limits(values.seconds(guest_timeout, "--guest-timeout"), values.seconds(timeout, "--timeout"))
    at = moment_of(snapshot_at) if snapshot_at is not None else None
    inputs = (snapshot,) if image is None else (snapshot, image)
    services = Services(at, to, parent, None, record, None, inputs)
    services.check()
    request = Request(until, exits, trace, result, inputs, services)
    found = Snapshot(snapshot)
    return Resumed.of(found, request, limits, timed=exits, cached=cached, image=image, engine=engine).status()


class Resumed(Run):
    """A run that begins with a snapshot."""

    snapshot: Snapshot
    arguments: dict[str, Any]
    whole: bool

    @classmethod
    def of(
        cls,
        snapshot: Snapshot,
        request: Request,
        limits: Limits,
        *,
        timed: bool,
        cached: bool,
        image: Path | None = None,
        engine: str | None = None,
        whole: bool = False,
    ) -> Self:
        """`whole`: print all that is known to have been printed, as a run from the beginning would."""
        from bt.snapshot import options_of

        arguments: dict[str, Any] = {"limits": limits, "timed": timed, "cache": cached, "engine": engine}
        arguments["repeats"] = request.services is not None and request.services.record is not None
        run = cls(cast("Any", None), options_of(snapshot, **arguments), request)
        run.snapshot, run.whole = snapshot, whole
        run.arguments = {**arguments, "image": image}
        return run

    def _open(self) -> Session:
        from bt.snapshot import ResumedSession

        session = ResumedSession(self.snapshot, self._write, **self.arguments)
        session.beforehand = lambda: self._print_again(session)
        return session

    def _tell_engine(self) -> None:
        super()._tell_engine()
        caution = cast("ResumedSession", self._session).caution
        if caution:
            click.echo(f"retrap: {caution}", err=True)

    def _print_again(self, session: ResumedSession) -> Outcome | None:
        """Show what was printed before; the end of the run, where that is what it was to run to."""
        printed = session.printed
        self._write(printed if self.whole else printed[printed.rfind(b"\n") + 1 :])
        return session.driver.outcome
