"""`retrap bench`: measurements of whole processes, printed as tables and as JSON.

Room: the command line. What is measured is in `bt.bench`, this module prints; figures hold for the machine they
were taken on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bt.bench.boot import Entrant, Goal


def _writable(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    """Refuse before anything is measured a file that could not be written after it."""
    from bt import output

    output.check((path,))
    return path


def _drawable(context: click.Context, parameter: click.Parameter, base: Path | None) -> Path | None:
    """As `_writable`, of the files of a plot."""
    if base is not None and not base.name:
        raise click.BadParameter(f"{base}: is no file's name", context, parameter)
    for suffix in (".svg", ".png"):
        _writable(context, parameter, base and base.with_suffix(suffix))
    return base


_json = click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    callback=_writable,
    help="Write all figures to a file, too.",
)
_plot = click.option(
    "--plot",
    "base",
    type=click.Path(path_type=Path),
    metavar="NAME",
    callback=_drawable,
    help="Draw NAME.svg and NAME.png.",
)


def _write(path: Path, value: object) -> None:
    from bt import output

    output.write(path, (json.dumps(value, indent=2) + "\n").encode())


@click.group()
def command() -> None:
    """Measure boots, exits and scans, beside QEMU."""


@command.command("boot")
@click.option("--guest", "name", default="debian-amd64", show_default=True, help="A fetched guest (`retrap guests`).")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1, 1000), help="Boots of each contender.")
@click.option("--only", multiple=True, metavar="NAME", help="Measure this contender; may be repeated.")
@click.option("--timeout", default=300.0, show_default=True, type=click.FloatRange(1), help="Seconds for one boot.")
@_json
def boot_command(name: str, runs: int, only: tuple[str, ...], timeout: float, json_file: Path | None) -> None:
    """Boot a stock kernel to its user space, ours and QEMU's taking turns.

    Times are of whole processes, from their start to the guest's marker.
    """
    from bt import guests
    from bt.bench import boot
    from emulator.errors import UsageError

    guest = guests.find(name)
    known = [contender.name for contender in boot.contenders(guest, guest.kernel)]
    for chosen in only:
        if chosen not in known:
            raise UsageError(f"no contender is named {chosen!r}; there are {', '.join(known)}")
    entrants = boot.measure(guest, runs, only, timeout, lambda line: click.echo(line, err=True))
    if json_file is not None:
        _write(json_file, boot.as_json(guest, entrants))
    _print_boots(entrants, boot.goals(guest))


def _print_boots(entrants: Sequence[Entrant], goals: Sequence[Goal]) -> None:
    from rich.console import Console
    from rich.table import Table

    from bt.bench import boot

    table = Table("contender", "what", "median s", "least", "most", "runs", "no marker", title="start to user space")
    for column in table.columns[2:]:
        column.justify = "right"
    for entrant in entrants:
        seconds, median = entrant.seconds, entrant.median
        figures = [f"{x:.2f}" for x in (median, min(seconds), max(seconds))] if median is not None else ["-"] * 3
        counts = [str(len(seconds)), str(len(entrant.failures))]
        table.add_row(entrant.contender.name, entrant.contender.what, *figures, *counts)
    console = Console()
    console.print(table)
    for goal in goals:
        measured = boot.ratio(entrants, goal)
        if measured is not None:
            names = f"{'|'.join(goal.of)} / {'|'.join(goal.to)}"
            console.print(f"{names}: {measured:.2f} (goal: at most {goal.at_most})", highlight=False)
    for entrant in entrants:
        if entrant.failures:
            console.print(f"{entrant.contender.name} without marker, console ends:", highlight=False, markup=False)
            console.print(entrant.failures[-1], highlight=False, markup=False)


@command.command("exits")
@click.option("--times", default=100_000, show_default=True, type=click.IntRange(1000), help="Rounds of each loop.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1, 100), help="The best of so many counts.")
@_json
def exits_command(times: int, runs: int, json_file: Path | None) -> None:
    """Measure what one exit costs, by the instruction that causes it."""
    from rich.console import Console
    from rich.table import Table

    from bt import progress
    from bt.bench import exits

    with progress.stage("counting exits"):
        costs = list(exits.measure(times, runs))
    if json_file is not None:
        rows = [{"loop": cost.loop.name, "exits": cost.exits, "microseconds": cost.microseconds} for cost in costs]
        _write(json_file, {"format": 1, "loops": rows})
    table = Table("instruction", "exits", "µs an exit", title="trap and emulate")
    for cost in costs:
        name = cost.loop.name + (" (trivial handler)" if cost.loop.trivial else "")
        table.add_row(name, str(cost.exits), f"{cost.microseconds:.2f}")
    Console().print(table)


@command.command("scan")
@click.argument("image", required=False, type=click.Path(path_type=Path))
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1, 100), help="The best of so many counts.")
@_json
def scan_command(image: Path | None, runs: int, json_file: Path | None) -> None:
    """Measure how fast IMAGE is read and scanned; by default, the fetched debian-amd64."""
    from bt import guests, progress
    from bt.bench import scan

    with progress.stage("scanning"):
        times = scan.measure(image if image is not None else guests.find("debian-amd64").kernel, runs)
    if json_file is not None:
        _write(json_file, {"format": 1, **asdict(times)})
    click.echo(f"load             {times.load:7.3f} s")
    click.echo(f"scan             {times.first:7.3f} s  {times.sites} sites in {times.text / 2**20:.1f} MiB of text")
    click.echo(f"scan, cached     {times.again:7.3f} s")


@command.command("rewrite")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1, 100), help="The best of so many counts.")
@click.option("--grow", is_flag=True, help="Rewrite synthetic images of 1 to 200 MiB of text, too.")
@_json
def rewrite_command(images: tuple[str, ...], runs: int, grow: bool, json_file: Path | None) -> None:
    """Measure how fast IMAGE (a file or a guest) is scanned and rewritten, in what memory, and what comes of it.

    By default every Debian kernel that has been fetched. Beside it the time of objdump, and figures of e9patch as they
    were published with its run on such a kernel; these are quoted, not measured.
    """
    from bt import progress
    from bt.bench import rewrite
    from emulator.errors import BadImage, RetrapError

    figures: list[rewrite.Figures | tuple[str, RetrapError]] = []
    paths = list(rewrite.images(images))
    for name, path in paths:
        with progress.stage(f"rewriting {name}"):
            try:
                figures.append(rewrite.measure(name, path, runs))
            except BadImage as error:
                figures.append((name, error))
    grown: list[rewrite.Growth] = []
    if grow:
        with progress.stage("rewriting larger and larger images", len(rewrite.SIZES)) as step:
            for one in rewrite.grow(paths[0][1]):
                grown.append(one)
                step(1)
    if json_file is not None:
        _write(json_file, rewrite.as_json(figures, grown))
    click.echo(rewrite.as_text(figures, grown), nl=False)


@command.command("memory")
@click.argument("image", required=False, type=click.Path(path_type=Path))
@click.option("--technique", "chosen", multiple=True, metavar="NAME", help="Measure this one; may be repeated.")
@click.option("--boot/--no-boot", default=True, help="Boot Debian's kernel as well, where it was fetched (default).")
@_json
@_plot
def memory_command(
    image: Path | None, chosen: tuple[str, ...], boot: bool, json_file: Path | None, base: Path | None
) -> None:
    """Measure what each technique of memory virtualisation costs: exits, guest blocks and time by operation.

    IMAGE is the workload, by default samples/memory as it is built, or its para-virtual port.
    """
    from bt import progress
    from bt.bench import memory, shadow
    from emulator.errors import UsageError

    for name in chosen:
        if name not in memory.names():
            raise UsageError(f"there is no technique called {name!r}; there are {', '.join(memory.names())}")
    techniques = chosen or memory.names()
    guest = memory.stock_guest("debian-amd64") if boot else None
    costs: list[memory.Cost] = []
    rooms: list[memory.Room] = []
    with progress.stage("virtualising memory", len(techniques)) as step:
        for found, used in memory.everything(techniques, image, guest, step):
            costs += found
            rooms += used
    speed = shadow.measure(image or memory.workload(), memory.MEMORY) if shadow.TECHNIQUE in techniques else None
    if json_file is not None:
        values = memory.as_json(costs, rooms)
        if speed is not None:
            values["shadow"] = shadow.as_json(speed)
        _write(json_file, values)
    click.echo(memory.as_text(costs, rooms), nl=False)
    if speed is not None:
        click.echo(shadow.as_text(speed), nl=False)
    if base is not None:
        for file in memory.plot(costs, base):
            click.echo(f"wrote {file}")


@command.command("para")
@click.option("--guest", "name", default="debian-amd64", show_default=True, help="A fetched guest (`retrap guests`).")
@click.option("--way", "chosen", multiple=True, metavar="NAME", help="native, trap, inline or xen; repeatable.")
@_json
@_plot
def para_command(name: str, chosen: tuple[str, ...], json_file: Path | None, base: Path | None) -> None:
    """Boot one stock kernel at full privilege, by trapping, rewritten, and as a Xen guest, and compare.

    Each way also runs a program that changes 2048 pages at once: what batched updates of page tables are for.
    """
    from bt import guests
    from bt.bench import para

    guest = guests.find(name)
    figures = list(para.measure(guest, chosen or tuple(para.WAYS), lambda line: click.echo(line, err=True)))
    if json_file is not None:
        _write(json_file, para.as_json(guest, figures))
    click.echo(para.as_text(figures), nl=False)
    if base is not None:
        for file in para.plot(figures, base):
            click.echo(f"wrote {file}")


@command.command("engine")
@click.option("--guest", "name", default="debian-amd64", show_default=True, help="A fetched guest (`retrap guests`).")
@click.option(
    "--runs", default=3, show_default=True, type=click.IntRange(1, 100), help="Turns of whatever takes turns."
)
@click.option("--only", multiple=True, metavar="PART", help="loops, trap, boot, exits, tasks, tracer, two; repeatable.")
@_json
def engine_command(name: str, runs: int, only: tuple[str, ...], json_file: Path | None) -> None:
    """Measure the KVM engine: beside the host's own processor, a bare KVM exit, and QEMU's TCG."""
    from bt import guests
    from bt.bench import engine
    from emulator.errors import Unavailable, UsageError

    for part in only:
        if part not in engine.PARTS:
            raise UsageError(f"there is no part {part!r} to measure; take of {', '.join(engine.PARTS)}")
    try:
        guest = guests.find(name)
    except Unavailable as error:
        guest = None
        click.echo(f"nothing is booted: {error}", err=True)
    figures = []
    for figure in engine.measure(guest, runs, only, lambda line: click.echo(line, err=True)):
        figures.append(figure)
        measured = "not measured" if figure.measured is None else f"{figure.measured:.3g} {figure.unit}"
        bound = "at most" if figure.at_most else "at least"
        verdict = {True: "reached", False: "NOT reached", None: ""}[figure.reached]
        click.echo(f"{figure.name}: {measured} (goal: {bound} {figure.goal:g}; {verdict}) {figure.detail}".rstrip())
    if json_file is not None:
        _write(json_file, engine.as_json(figures))


@command.command("ways")
@click.option("--isa", "chosen", multiple=True, metavar="ISA", help="Measure this instruction set; may be repeated.")
@click.option("--way", "ways_", multiple=True, metavar="WAY", help="native, trap, inline or para; may be repeated.")
@_json
def ways_command(chosen: tuple[str, ...], ways_: tuple[str, ...], json_file: Path | None) -> None:
    """Count the exits of one kernel, run at full privilege, trapped, rewritten and para-virtualised."""
    from rich.console import Console
    from rich.table import Table

    from bt import progress
    from bt.bench import ways
    from emulator.errors import UsageError

    known = [row["isa"] for row in ways.manifest()["para"]]
    for name, names in ((chosen, known), (ways_, ways.WAYS)):
        for one in name:
            if one not in names:
                raise UsageError(f"there is no {one!r} to measure; take of {', '.join(names)}")
    isas, kinds = chosen or tuple(known), ways_ or ways.WAYS
    with progress.stage("running the sample", len(isas) * len(kinds) * len(ways.WORKLOADS)) as step:
        figures = list(ways.measure(isas, kinds, step))
    if json_file is not None:
        from bt import output

        output.write(json_file, ways.as_json(figures).encode())
    for head, rows in ((ways.SUMMARY_HEAD, ways.summary(figures)), (ways.WORKLOAD_HEAD, ways.by_workload(figures))):
        table = Table(*head)
        for row in rows:
            table.add_row(*row)
        Console().print(table)


@command.command("services")
@click.option("--guest", "name", default="debian-amd64", show_default=True, help="A fetched guest (`retrap guests`).")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1, 100), help="Turns; the least counts.")
@click.option(
    "--only",
    multiple=True,
    metavar="PART",
    help="snapshot, warm, checkpoints, recording, backwards, gdb; may be repeated.",
)
@_json
def services_command(name: str, runs: int, only: tuple[str, ...], json_file: Path | None) -> None:
    """Measure snapshots, warm starts, checkpoints, recordings and going backwards, on a stock kernel."""
    from bt import guests
    from bt.bench import services
    from emulator.errors import UsageError

    for part in only:
        if part not in services.PARTS:
            raise UsageError(f"there is no {part!r} to measure; take of {', '.join(services.PARTS)}")
    figures = []
    for figure in services.measure(guests.find(name), runs, only, lambda line: click.echo(line, err=True)):
        figures.append(figure)
        verdict = "reached" if figure.reached else "NOT reached"
        measured = f"{figure.measured:.3g} {figure.unit} (goal: at most {figure.goal:g}; {verdict})"
        click.echo(f"{figure.name}: {measured} {figure.detail}".rstrip())
    if json_file is not None:
        _write(json_file, services.as_json(figures))
