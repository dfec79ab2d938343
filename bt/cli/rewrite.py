"""`retrap rewrite`, `revert`, `check` and `apply`: an image becomes one that carries its patches and the way back.

Room: the command line. What is patched is `bt.planner`'s decision; an original is only ever read, and outputs are
written together at the end, so a command that fails leaves nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bt.image import Image
    from bt.plan import Plan

STRATEGIES = ("trap", "hypercall", "inline", "auto")
REPORTS = ("text", "json", "sarif", "html")


@click.command()
@click.argument("image", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="The rewritten ELF to write.")
@click.option("--strategy", "--mode", type=click.Choice(STRATEGIES), default="auto", show_default=True)
@click.option("--only", multiple=True, metavar="EXPRESSION", help="Only sites that match; repeated: any of them.")
@click.option("--except", "but", multiple=True, metavar="EXPRESSION", help="No sites that match.")
@click.option("--at", multiple=True, metavar="ADDRESS", help="Only the site at this guest-virtual address; repeatable.")
@click.option(
    "--fail-under",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Fail, and write nothing, where fewer sites run without a trap.",
)
@click.option("--manifest", "manifest_path", type=click.Path(), help="Write the plan as JSON here, too.")
@click.option(
    "--report",
    "reports",
    type=(click.Choice(REPORTS), click.Path()),
    multiple=True,
    metavar="FORMAT FILE",
    help="Write a report (text, json, sarif, html) to FILE; repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Plan and report; write no image.")
@click.option("--cache/--no-cache", "cached", default=True, help="Keep and use findings of earlier scans (default).")
def command(
    image: str,
    output: str | None,
    strategy: str,
    only: tuple[str, ...],
    but: tuple[str, ...],
    at: tuple[str, ...],
    fail_under: float | None,
    manifest_path: str | None,
    reports: tuple[tuple[str, str], ...],
    dry_run: bool,
    cached: bool,
) -> None:
    """Write IMAGE, a kernel's file or a fetched guest, with its sensitive instructions patched.

    \b
    trap       every instruction that would not exit by itself gets a planted trap
    hypercall  a fixup calls the hypervisor, where one can be reached; else as trap
    inline     a fixup does the work in the guest, where one can; else as trap
    auto       the best of these for each site

    EXPRESSION is FIELD=VALUE or FIELD!=VALUE, joined by `and`, `or`, `not` and parentheses; fields are class, mnemonic,
    operation, section, symbol, address, confidence and state. The output is an ELF that carries its manifest: `retrap
    revert` undoes it, `retrap check` verifies it, `retrap apply` repeats it on the original.
    """
    from bt import match, progress, rewrite
    from bt import output as outputs
    from bt.cli import values
    from bt.image import load
    from bt.image.elf_form import as_elf
    from bt.pagecache import PageCache
    from bt.planner import plan
    from bt.report import text
    from bt.scan import scan
    from emulator.errors import AlreadyRewritten, UsageError

    if output is None and not dry_run:
        raise UsageError("no output is named; give -o FILE, or --dry-run to see what would be done")
    named = (None if dry_run else output, manifest_path, *(file for _, file in reports))
    places = [values.number(one, "--at", "address; give one as `retrap scan --sites` has it") for one in at]
    chosen = match.chosen(only, but, places)
    path = values.kernel(image)
    outputs.check((Path(file) for file in named if file is not None), [path])
    with progress.stage(f"reading {image}"):
        loaded = as_elf(load(path))
    if loaded.section(rewrite.MANIFEST) is not None:
        raise AlreadyRewritten(f"{image}: is rewritten already; revert it first")
    cache = PageCache(isa=loaded.isa.name) if cached else None
    with progress.stage(f"scanning {image}"):
        sites = scan(loaded, cache)
    _check_addresses(places, {site.address for site in sites})
    planned = plan(loaded, sites, strategy, cache, chosen, _words(only, but, at))
    _check_share(planned, fail_under)
    files: list[tuple[Path, bytes]] = []
    with progress.stage("rewriting"):
        data = rewrite.rewrite(loaded, planned)
    if output is not None and not dry_run:
        files.append((Path(output), data))
    if manifest_path is not None:
        files.append((Path(manifest_path), rewrite.manifest_text(planned)))
    with progress.stage("reporting"):
        files += [(Path(file), _report(name, planned, output or image, loaded, data)) for name, file in reports]
    outputs.write_all(files, path)
    click.echo(text.plan_table(planned), nl=False)


def _words(only: tuple[str, ...], but: tuple[str, ...], at: tuple[str, ...]) -> str:
    """What was chosen, in the match language."""
    parts = [f"({one})" for one in only] + [f"address={one}" for one in at]
    wanted = " or ".join(parts)
    unwanted = [f"not ({one})" for one in but]
    return " and ".join(([f"({wanted})"] if wanted else []) + unwanted)


def _check_addresses(wanted: list[int], there: set[int]) -> None:
    from emulator.errors import UsageError

    missing = [one for one in wanted if one not in there]
    if missing:
        nearest = min(there, key=lambda address: abs(address - missing[0]), default=None)
        hint = f"; the nearest is {nearest:#x}" if nearest is not None else ""
        raise UsageError(f"--at {missing[0]:#x}: there is no sensitive instruction at this address{hint}")


def _check_share(planned: Plan, fail_under: float | None) -> None:
    from emulator.errors import CoverageMissed

    share = planned.share()
    if fail_under is not None and share < fail_under:
        raise CoverageMissed(
            f"{share:.1f} % of the sites run without a trap, fewer than the {fail_under:g} % of --fail-under; "
            "nothing was written"
        )


def _report(name: str, planned: Plan, path: str, image: Image, data: bytes) -> bytes:
    from bt.image import from_bytes
    from bt.report.account import account
    from bt.report.formats import render

    before = len(image.elf) + len(image.appended)
    made = account(planned, path, image, before, len(data), rewritten=from_bytes(data, path))
    return render(made, name).encode()


@click.command()
@click.argument("image", type=click.Path())
@click.option("-o", "--output", type=click.Path(), required=True, help="The original to write.")
def revert_command(image: str, output: str) -> None:
    """Write the original of a rewritten IMAGE, bit for bit.

    Where the original was an ELF, or a kernel as raw memory, this is that file; where it was compressed, the kernel
    that was inside.
    """
    from bt import manifest, progress, rewrite
    from bt import output as outputs
    from bt.image import load

    outputs.check([Path(output)], [Path(image)])
    with progress.stage(f"reverting {image}"):
        loaded = load(image)
        data = rewrite.revert(loaded.elf, image)
    rewrite.write(Path(output), data, Path(image))
    found = manifest.read(loaded)
    container = found.container if found is not None else ""
    if found is not None and found.raw is not None:
        container = found.raw.container if found.raw.compression != "none" else "elf"
    if not container.startswith("elf"):
        click.echo(f"{output}: is the kernel that was inside the {container}, unpacked and bit for bit")


@click.command()
@click.argument("image", type=click.Path())
def check_command(image: str) -> None:
    """Verify a rewritten IMAGE: text, fixups, relocations and original against the hashes of its manifest.

    Fails when anything was changed after it was rewritten.
    """
    from bt import progress, rewrite
    from bt.image import load

    with progress.stage(f"checking {image}"):
        loaded = load(image)
        rewrite.revert(loaded.elf, image)
        found = rewrite.verify(loaded.elf, image)
    planned = found.plan
    patched = sum(site.old != site.new for site in planned.sites)
    click.echo(
        f"{image}: is as it was rewritten by strategy {planned.mode}: {len(planned.sites)} sites, {patched} of them "
        f"patched, {len(planned.fixups)} fixups; the original is {found.original_sha256}"
    )


@click.command()
@click.argument("manifest", type=click.Path())
@click.argument("original", type=click.Path())
@click.option("-o", "--output", type=click.Path(), required=True, help="The rewritten ELF to write.")
def apply_command(manifest: str, original: str, output: str) -> None:
    """Repeat on ORIGINAL what MANIFEST, written by `retrap rewrite --manifest`, says; the same file comes of it."""
    from bt import output as outputs
    from bt import progress, rewrite
    from bt.cli import values
    from bt.image import load
    from bt.image.elf_form import as_elf
    from bt.plan import read_plan

    path = values.kernel(original)
    outputs.check([Path(output)], [path, Path(manifest)])
    with progress.stage(f"applying {manifest}"):
        planned = read_plan(values.text_file(Path(manifest)))
        data = rewrite.replay(planned, as_elf(load(path)))
    rewrite.write(Path(output), data, path)
