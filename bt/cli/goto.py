"""`retrap goto`: a place in a recorded run, to the instruction, and what the guest is there; backwards as well.

Room: the command line. Going is `paravirt.services.timeline`'s; here places are read and shown.
"""

from __future__ import annotations

import json
import re
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import click

if TYPE_CHECKING:
    from bt.session import Session
    from emulator.machine import Outcome
    from paravirt.services.positions import Position
    from paravirt.services.record import Replayer
    from paravirt.services.timeline import Timeline


@click.command()
@click.argument("recording", type=click.Path(path_type=Path))
@click.argument("position")
@click.option("--back", default=0, type=click.IntRange(0, 100_000), metavar="N", help="Then N instructions back.")
@click.option("--forward", default=0, type=click.IntRange(0, 100_000), metavar="N", help="Then N instructions on.")
@click.option(
    "--previous-write", "write", metavar="ADDRESS[:SIZE]", help="Then back to the store that last changed this memory."
)
@click.option("--previous", "code", metavar="ADDRESS", help="Then back to where this was executed last.")
@click.option("--image", type=click.Path(path_type=Path), metavar="FILE", help="Where the guest's image is now.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--cache/--no-cache", "cached", default=True, help="Keep and use findings of earlier scans (default).")
def command(
    recording: Path,
    position: str,
    back: int,
    forward: int,
    write: str | None,
    code: str | None,
    image: Path | None,
    as_json: bool,
    cached: bool,
) -> int:
    """Go to POSITION in the run that RECORDING is of, and show the guest there.

    A position is the guest's progress in blocks, as `retrap run --trace` has it, and behind a + instructions of the
    next block; `end` is the end of the run. In a run on KVM it is nanoseconds, and the guest is shown behind its first
    exit there; that run is done again from its beginning, and has no way back. Addresses are guest-virtual, in
    hexadecimal or symbols of the kernel; they hold in the address space that the guest is in at POSITION.
    """
    from bt.recorded import session_of
    from emulator.errors import UsageError
    from paravirt.hypervisor import Hypervisor
    from paravirt.services.positions import position_of
    from paravirt.services.record import Console, Replayer
    from paravirt.services.recording import read
    from paravirt.services.timeline import PAUSED, ConsoleOnce, Timeline

    found = read(recording)
    console = Console()
    last = found.end.mark if found.end is not None else found.marks[-1] if found.marks else None
    place = None if position == "end" else position_of(position)
    session = session_of(found, ConsoleOnce(console), image, cache=cached)
    try:
        driver = cast(Hypervisor, session.driver)
        sought = _sought(session, write, code)  # before the way there, which may be long
        if driver.engine.capabilities.lands:
            _refuse_there(driver.engine.capabilities.name, position, back or forward or write or code)
            _print(_replayed(session, Replayer(driver, found, console), place), as_json)
            return 0
        timeline = Timeline(driver, begun=found.run.get("snapshot") is not None)
        timeline.inputs.inputs = list(found.inputs)
        timeline.inputs.connect()
        if place is None and last is not None:
            place = position_of(str(last.progress))
        if place is None:
            raise UsageError(f"{recording}: is of no run that got anywhere; give a position")
        outcome = timeline.goto(place)
        _tell_end(timeline, outcome)
        for _ in range(back):
            outcome = timeline.step_back()
        if outcome is PAUSED:
            for _ in range(forward):
                outcome = timeline.step()
                if outcome is not PAUSED:
                    _tell_end(timeline, outcome)
                    break
        missing = _search(timeline, session, sought)
        shown = _shown(str(timeline.position), session)
    finally:
        session.close()
    if missing:
        click.echo(f"retrap: {missing}", err=True)
    _print(shown, as_json)
    return 1 if missing else 0


def _print(shown: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    for name, value in shown.items():
        if isinstance(value, dict):
            pairs = [f"{key:>6} {number}" for key, number in value.items()]
            for at in range(0, len(pairs), 4):
                click.echo("  ".join(pairs[at : at + 4]))
        else:
            click.echo(f"{name:<9} {value}")


def _refuse_there(engine: str, position: str, asked: object) -> None:
    """Refuse what takes an engine that counts what a guest does."""
    from emulator.errors import UsageError

    if asked or "+" in position:
        raise UsageError(
            f"the {engine} engine does not count instructions, and knows a run's exits and landings alone: give a "
            "progress or `end`, without --back, --forward or --previous; record with --engine unicorn for these"
        )


def _replayed(session: Session, replayer: Replayer, place: Position | None) -> dict[str, Any]:
    """The guest behind its first exit at a place, or at the end of the run, done again from its beginning."""
    from paravirt.services.timeline import PAUSED

    if place is None:
        replayer.stop_where_it_ended()
    else:
        replayer.stop_at(place.progress)
    outcome, progress = session.run(), str(session.machine.engine.progress)
    if outcome is not PAUSED:
        replayer.compare(outcome)
        click.echo(f"retrap: the guest ended ({outcome.kind.value}) at {progress}", err=True)
    return _shown(progress, session)


def _tell_end(timeline: Timeline, outcome: Outcome) -> None:
    from paravirt.services.timeline import PAUSED

    if outcome is not PAUSED:
        click.echo(f"retrap: the guest ended ({outcome.kind.value}) at {timeline.position}", err=True)


class _Sought(NamedTuple):
    """What to go back to; texts as they were given."""

    write: str
    at: int
    """Guest-virtual address of the memory."""
    size: int
    code: str
    pc: int


def _sought(session: Session, write: str | None, code: str | None) -> _Sought:
    """Raises `UsageError` for what is no address, symbol or size."""
    name, _, size = (write or "").partition(":")
    return _Sought(
        write or "",
        _address(session, name) if write is not None else 0,
        _size(size),
        code or "",
        _address(session, code) if code is not None else 0,
    )


def _search(timeline: Timeline, session: Session, sought: _Sought) -> str:
    """Go back to what is sought; a sentence where it was not there."""
    if sought.write:
        physical = timeline.peek(lambda: _physical(session, sought.at))
        if timeline.find_previous_write(physical, sought.size) is None:
            return f"nothing was written to {sought.write} before {timeline.position}"
    if sought.code and timeline.find_previous([sought.pc]) is None:
        return f"{sought.code} was not executed before {timeline.position}"
    return ""


def _size(text: str) -> int:
    from emulator.errors import UsageError

    if not text:
        return 8
    if not re.fullmatch(r"\d{1,4}", text) or not 1 <= int(text) <= 4096:
        raise UsageError(f"{text!r} is no size; give bytes, from 1 to 4096")
    return int(text)


def _address(session: Session, text: str) -> int:
    from emulator.errors import UsageError

    if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text):
        return int(text, 16)
    found = session.image.symbols.address_of(text)
    if found is None:
        raise UsageError(f"{text!r} is neither an address in hexadecimal with 0x nor a symbol of {session.image.path}")
    return found + session.options.delta


def _physical(session: Session, address: int) -> int:
    """Guest-physical address of a guest-virtual one, in the guest's present address space."""
    from emulator.errors import UsageError
    from emulator.isa.exceptions import ArchitecturalException

    shadow: Any = session.driver.shadow  # type: ignore[union-attr]
    try:
        walk = shadow.guest.walk(address, False, False, False)
    except ArchitecturalException:
        raise UsageError(f"the guest maps nothing at {address:#x} at this position; give another") from None
    return int(walk.frame) | address & 0xFFF


def _shown(position: str, session: Session) -> dict[str, Any]:
    """The guest as it is now; registers by gdb's names, those before the program counter."""
    import hashlib

    from bt.gdb.targets import target_for

    driver: Any = session.driver
    machine, target = session.machine, target_for(session)
    processor = target.processor(driver)
    rows = takewhile(lambda row: row.name != target.pc, target.registers)
    return {
        "position": position,
        "at": f"{driver.pc:#x} {session.symbol(driver.pc)}",
        "level": driver.vcpu.level,
        "time": f"{machine.clock.now() / 1e9:.9f} s",
        "exits": driver.exits.total,
        "registers": {row.name: f"{row.read(processor):#0{2 + row.bits // 4}x}" for row in rows},
        "processor": hashlib.sha256(repr(driver.state).encode()).hexdigest()[:16],
        "memory": machine.memory.digest(),
    }
