"""`retrap replay`: a recorded run is done again, and nothing may differ.

Room: the command line. What is recorded, and how it is compared, is `paravirt.services.record`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import click


@click.command()
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--until", metavar="PROGRESS", help="Stop at this progress; what lies before it is compared.")
@click.option("--image", type=click.Path(path_type=Path), metavar="FILE", help="Where the guest's image is now.")
@click.option("--quiet", is_flag=True, help="Do not print what the guest prints.")
@click.option("--cache/--no-cache", "cached", default=True, help="Keep and use findings of earlier scans (default).")
def command(recording: Path, until: str | None, image: Path | None, quiet: bool, cached: bool) -> int:
    """Do the run again that RECORDING is of (`retrap run --record`).

    Input comes at the moments at which it came. Console, exits, processor, devices and memory must be the same: the
    exit status is 0 then, and 1 with the first difference otherwise.
    """
    from bt.recorded import session_of
    from bt.terminal import Screen, descriptor_of
    from paravirt.hypervisor import Hypervisor
    from paravirt.services.positions import progress_of
    from paravirt.services.record import Console, Replayer
    from paravirt.services.recording import read
    from paravirt.services.travel import PAUSED

    place = None if until is None else progress_of(until)
    found = read(recording)
    screen = Screen(descriptor_of(sys.stdout), b"", lambda: None)
    console = Console()

    def write(data: bytes) -> None:
        console(data)
        if not quiet:
            screen.write(data)

    session = session_of(found, write, image, cache=cached)
    try:
        replayer = Replayer(cast(Hypervisor, session.driver), found, console)
        if place is None:
            replayer.stop_where_it_ended()
        else:
            replayer.stop_at(place)
        try:
            outcome = session.run()
        finally:
            screen.flush()
        if outcome is not PAUSED:
            replayer.compare(outcome)
        progress = session.machine.engine.progress
    finally:
        session.close()
    end = "" if found.end is not None else "; the recording has no end: its process was killed"
    marks = f"{replayer.passed} of {len(found.marks)} places compared"
    click.echo(f"retrap: as recorded, to progress {progress}; {marks}{end}", err=True)
    return 0
