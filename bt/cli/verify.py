"""`retrap verify`: a guest as it is and rewritten, compared.

Room: the command line. Runs and rules are `bt.verify`'s; this module reads the options and prints.
"""

from __future__ import annotations

from pathlib import Path

import click

MODES = ("trap", "inline")
"""What is compared where nothing else is asked for."""
STRATEGIES = ("trap", "hypercall", "inline", "auto", "xen")


@click.command()
@click.argument("image")
@click.option(
    "--virt", "modes", multiple=True, type=click.Choice(STRATEGIES), help="Compare this mode only; repeatable."
)
@click.option("--engine", "engines", metavar="NAMES", help="Engines to run rewritten guests on: unicorn,kvm for both.")
@click.option("--initrd", type=click.Path(path_type=Path), metavar="FILE", help="The initial file system.")
@click.option(
    "--kernel",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of a fetched guest: verify this kernel with all else that the guest brings, a rewritten one for example.",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The manifest.toml that describes IMAGE, where it lies neither beside nor above it.",
)
@click.option("--append", metavar="TEXT", help="The kernel's command line.")
@click.option("--memory", metavar="SIZE", help="Guest memory, in K, M or G; by default 256M, or what the guest needs.")
@click.option("--kaslr", metavar="OFFSET", help="Move the kernel in virtual memory: bytes, or seed:TEXT to choose.")
@click.option("--physical", metavar="OFFSET", help="Move the kernel in physical memory by so many bytes.")
@click.option("--timeout", default="300", show_default=True, metavar="SECONDS", help="Time of the host for each run.")
@click.option("--guest-timeout", metavar="SECONDS", help="Time of the guest for each run.")
@click.option("--qemu", is_flag=True, help="Compare the console with QEMU's, too.")
@click.option("--blame", is_flag=True, help="Where a run with fixups differs, find the fixup: up to a dozen more runs.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the result as JSON.")
@click.option("--cache/--no-cache", "cached", default=True, help="Keep and use findings of earlier scans (default).")
def command(
    image: str,
    modes: tuple[str, ...],
    engines: str | None,
    initrd: Path | None,
    kernel: Path | None,
    manifest: Path | None,
    append: str | None,
    memory: str | None,
    kaslr: str | None,
    physical: str | None,
    timeout: str,
    guest_timeout: str | None,
    qemu: bool,
    blame: bool,
    json_file: Path | None,
    cached: bool,
) -> None:
    """Run IMAGE at full privilege and rewritten, and compare what both did.

    IMAGE is a kernel of any instruction set that `retrap isa` names, an image that `retrap rewrite` wrote, or a guest
    fetched before (`retrap guests`) by its name. Says what was compared, what may differ and why. Where the runs part,
    the first divergence is shown and the exit status is 1.
    """
    import json
    from dataclasses import replace

    from bt import output, progress
    from bt.cli import values
    from bt.session import Options, read_initrd
    from bt.verify import report, verify
    from bt.verify.guest import find
    from emulator.machine import Limits

    output.check((json_file,), (Path(image), initrd, kernel, manifest))
    physical_delta = values.number(physical, "--physical") if physical is not None else 0
    guest = find(image, physical_delta, kernel, manifest)
    file = initrd or guest.initrd
    options = Options(
        memory=values.size(memory) if memory is not None else guest.memory,
        initrd=read_initrd(file) if file is not None else b"",
        command_line=guest.command_line if append is None else append,
        delta=values.virtual_offset(kaslr, guest.image) if kaslr is not None else 0,
        physical_delta=physical_delta,
        limits=Limits(values.seconds(guest_timeout, "--guest-timeout"), values.seconds(timeout, "--timeout")),
        cache=cached,
    )
    options.check()
    chosen = modes or ((guest.plan.mode,) if guest.plan is not None else MODES)
    names = tuple(dict.fromkeys(engines.split(","))) if engines else ()
    for name in names:
        replace(options, engine=name).check()
    with progress.stage(f"running {image} as it is and rewritten"):
        result = verify(guest, options, chosen, lambda line: click.echo(line, err=True), names)
    if qemu:
        from bt.verify.third_party import compare_with_qemu

        compare_with_qemu(result, options, file)
    failed = [one.pair.rewritten.mode for one in result.comparisons if not one.passed]
    for mode in (mode for mode in failed if blame and mode != "trap"):
        from bt.verify import blame as search

        found = search.blame(result, options, lambda line: click.echo(line, err=True), mode)
        result.blamed.extend(found.lines())
    if json_file is not None:
        output.write(json_file, (json.dumps(report.as_json(result), indent=2) + "\n").encode())
    click.echo(report.text(result), nl=False)
    result.check()
