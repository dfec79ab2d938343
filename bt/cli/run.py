"""`retrap run`: a guest on the terminal, under the hypervisor or natively.

Room: the command line. Words become options and a `bt.cli.running.Run`, which does the rest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bt.cli.services import Services

MODES = ("native", "none", "trap", "hypercall", "inline", "auto", "para", "xen")
ENGINE_HELP = (
    "The CPU: unicorn, embedded and deterministic; kvm, the host's own; auto, the fastest that can run the guest."
)


@click.command()
@click.argument("image")
@click.option(
    "--virt",
    type=click.Choice(MODES),
    help="native: full privilege, no hypervisor; none: deprivileged, not rewritten; trap, hypercall, inline, auto: "
    "rewritten while it runs; para: a kernel that was ported to the hypervisor; xen: one that speaks Xen's interface, "
    "a stock Linux for example. By default a rewritten file as it was rewritten, a ported one as para, others inline.",
)
@click.option("--engine", default="unicorn", show_default=True, metavar="NAME", help=ENGINE_HELP)
@click.option(
    "--memory-technique",
    "technique",
    metavar="NAME",
    help="How memory is virtualised: snapshot, lazy or eager shadow tables, or two-stage, a model of it; direct or "
    "batched, a ported guest's own tables. By default what the instruction set has: snapshot, where it has shadow "
    "tables.",
)
@click.option("--initrd", type=click.Path(path_type=Path), metavar="FILE", help="The initial file system.")
@click.option(
    "--kernel",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of a fetched guest: run this kernel with all else that the guest brings, a rewritten one for example.",
)
@click.option("--append", metavar="TEXT", help="The kernel's command line.")
@click.option("--memory", default="256M", show_default=True, metavar="SIZE", help="Guest memory, in K, M or G.")
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="FILE[,ro]",
    help="Of a Xen guest: a file as xvda; again for xvdb and so on. With ,ro it is not written.",
)
@click.option(
    "--net",
    "networks",
    multiple=True,
    metavar="NETWORK",
    help="Of a Xen guest: user, the host's own network through its sockets; socket:ADDRESS, a cable to another "
    "retrap or QEMU (listen:ADDRESS or connect:ADDRESS to say which end). A path with a slash, or HOST:PORT.",
)
@click.option(
    "--driver-domain",
    metavar="GUEST",
    help="Serve disks and networks by the drivers of a second guest, debian-amd64 for example.",
)
@click.option(
    "--run", "lines", multiple=True, metavar="LINE", help="Of a fetched guest: a shell line for its /init, repeatable."
)
@click.option("--kaslr", metavar="OFFSET", help="Move the kernel in virtual memory: bytes, or seed:TEXT to choose.")
@click.option("--physical", metavar="OFFSET", help="Move the kernel in physical memory by so many bytes.")
@click.option("--timeout", metavar="SECONDS", help="End the run after so much time of the host.")
@click.option("--guest-timeout", metavar="SECONDS", help="End the run after so much time of the guest.")
@click.option("--until", metavar="TEXT", help="End the run when the console has printed this.")
@click.option("--exits", is_flag=True, help="Print the exit table, with times, at the end.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a line for every exit; as .json for Perfetto, as .jsonl lines of JSON, as .svg a plot.",
)
@click.option(
    "--trace-filter",
    metavar="LIST",
    help="Of exits,interrupts,faults,exceptions,calls,switches,patches,name=REGEX,level=N,pc=A-B.",
)
@click.option("--json", "result", type=click.Path(path_type=Path), metavar="FILE", help="Write the result as JSON.")
@click.option("--cache/--no-cache", "cached", default=True, help="Keep and use findings of earlier scans (default).")
@click.option(
    "--snapshot-at",
    metavar="WHEN",
    help="Take a snapshot: at a guest's time (2.5s), at `user`, `input` or `console:TEXT`; --to says where.",
)
@click.option("--to", type=click.Path(path_type=Path), metavar="FILE", help="The snapshot's file (`retrap resume`).")
@click.option(
    "--parent", type=click.Path(path_type=Path), metavar="FILE", help="Store only what this snapshot does not have."
)
@click.option("--warm", is_flag=True, help="Go on from a kept snapshot of the booted kernel; the first time, make it.")
@click.option(
    "--record", type=click.Path(path_type=Path), metavar="FILE", help="Write down the run for `retrap replay`."
)
def command(
    image: str,
    virt: str | None,
    engine: str,
    technique: str | None,
    initrd: Path | None,
    kernel: Path | None,
    append: str | None,
    memory: str,
    disks: tuple[str, ...],
    networks: tuple[str, ...],
    driver_domain: str | None,
    lines: tuple[str, ...],
    kaslr: str | None,
    physical: str | None,
    timeout: str | None,
    guest_timeout: str | None,
    until: str | None,
    exits: bool,
    trace: Path | None,
    trace_filter: str | None,
    result: Path | None,
    cached: bool,
    snapshot_at: str | None,
    to: Path | None,
    parent: Path | None,
    warm: bool,
    record: Path | None,
) -> int:
    """Run IMAGE, a kernel's file for any instruction set, or a guest fetched before (`retrap guests`) by its name.

    The guest's console is on stdout, its input is stdin. On a terminal Ctrl-A x ends the run and Ctrl-C is the
    guest's. A fetched guest brings its initial file system and command line.
    """
    from bt import para, progress, xen
    from bt.cli import values
    from bt.cli.running import Request, Run
    from bt.devices import Devices, DiskFile
    from emulator.errors import UsageError
    from emulator.machine import Limits

    if until == "":
        raise UsageError("--until needs a text; leave it out to run to the guest's end")
    limits = Limits(values.seconds(guest_timeout, "--guest-timeout"), values.seconds(timeout, "--timeout"))
    size = values.size(memory)
    own_files = initrd is None
    file, initrd, command_line = guest_files(image, initrd, append, virt, kernel)
    inputs = (file, initrd) if initrd is not None else (file,)
    devices = Devices(tuple(DiskFile.of(disk) for disk in disks), networks, driver_domain or "")
    if lines and (initrd is None or not own_files):
        raise UsageError("--run is for the initial file system of a fetched guest; name one, and leave --initrd out")
    services = _services(snapshot_at, to, parent, record, initrd, inputs)
    request = Request(until, exits, trace, result, inputs, services, trace_filter)
    if virt == xen.MODE and (warm or services.wanted):
        raise UsageError(xen.not_saved())
    if warm:
        given = {"virt": virt, "engine": engine, "technique": technique, "append": command_line, "memory": size}
        again = services.find_warm(file, {**given, "kaslr": kaslr, "physical": physical})
        if again is not None:
            from bt.cli.resume import Resumed

            return Resumed.of(again, request, limits, timed=exits, cached=cached, whole=True).status()
    from bt.image import load  # who goes on from a kept snapshot needs none of these
    from bt.manifest import mode_of
    from bt.session import Options, read_initrd

    with progress.stage(f"reading {file if kernel is not None else image}"):
        loaded = load(file)
    archive = read_initrd(initrd) if initrd is not None else b""
    if own_files and initrd is not None and (lines or devices):
        from bt.guest_files import with_devices

        archive = with_devices(image, archive, devices, lines)
    options = Options(
        mode=virt or mode_of(loaded) or (para.MODE if para.version_of(loaded) is not None else "inline"),
        engine=engine,
        technique=technique or "",
        memory=size,
        initrd=archive,
        command_line=command_line,
        delta=values.virtual_offset(kaslr, loaded) if kaslr is not None else 0,
        physical_delta=values.number(physical, "--physical") if physical is not None else 0,
        limits=limits,
        timed=exits,
        cache=cached,
        devices=devices,
        repeats=record is not None,
    )
    options.check()
    return Run(loaded, options, request).status()


def _services(
    snapshot_at: str | None,
    to: Path | None,
    parent: Path | None,
    record: Path | None,
    initrd: Path | None,
    inputs: tuple[Path, ...],
) -> Services:
    """What a run does besides running, checked."""
    from bt.cli.services import Services
    from bt.snapshot_moment import moment_of

    at = moment_of(snapshot_at) if snapshot_at is not None else None
    services = Services(at, to, parent, None, record, initrd, inputs)
    services.check()
    return services


def guest_files(
    image: str, initrd: Path | None, append: str | None, virt: str | None, kernel: Path | None
) -> tuple[Path, Path | None, str]:
    """Kernel, initrd and command line: of a file as given, of a fetched guest by default its own."""
    from bt import guests, xen
    from emulator.errors import UsageError

    if os.path.lexists(image) or os.sep in image:
        if kernel is not None:
            raise UsageError(f"--kernel takes the place of a fetched guest's kernel, and {image} is a file; give one")
        return Path(image), initrd, append or ""
    if image not in guests.RECIPES:
        raise UsageError(
            f"{image}: is no file and no guest; name a kernel's file, or one of {', '.join(guests.RECIPES)}"
        )
    guest = guests.find(image)
    own = xen.COMMAND_LINE if virt == xen.MODE else guest.command_line
    return kernel or guest.kernel, initrd or guest.initrd, own if append is None else append
