"""`retrap rewrite` and `retrap revert`: an image becomes one that carries its patches and the way back, and back.

Room: the command line. What is patched is `bt.plan`'s decision; an original is only ever read.
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("image", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="The rewritten ELF to write.")
@click.option("--mode", type=click.Choice(("trap", "inline")), default="inline", show_default=True)
@click.option("--manifest", "manifest_path", type=click.Path(), help="Write the plan as JSON here, too.")
@click.option("--dry-run", is_flag=True, help="Plan and report; write no image.")
@click.option("--cache/--no-cache", "cached", default=True, help="Keep and use findings of earlier scans (default).")
def command(image: str, output: str | None, mode: str, manifest_path: str | None, dry_run: bool, cached: bool) -> None:
    """Write IMAGE with its sensitive instructions patched.

    trap: every instruction that would not exit by itself gets a planted trap. inline: where it is sound, a jump to a
    fixup that does the work in the guest. The output is an ELF that carries its manifest; `retrap revert` undoes it.
    """
    from bt import rewrite
    from bt.image import load
    from bt.pagecache import PageCache
    from bt.planner import plan
    from bt.report import json as json_report
    from bt.report import text
    from bt.scan import scan
    from emulator.errors import UsageError

    if output is None and not dry_run:
        raise UsageError("no output is named; give -o FILE, or --dry-run to see what would be done")
    loaded = load(image)
    cache = PageCache() if cached else None
    planned = plan(loaded, scan(loaded, cache), mode, cache)
    data = rewrite.rewrite(loaded, planned)
    if manifest_path is not None:
        rewrite.write(Path(manifest_path), json_report.dumps(planned.to_json()).encode(), Path(image))
    if output is not None and not dry_run:
        rewrite.write(Path(output), data, Path(image))
    click.echo(text.plan_table(planned), nl=False)


@click.command()
@click.argument("image", type=click.Path())
@click.option("-o", "--output", type=click.Path(), required=True, help="The original to write.")
def revert_command(image: str, output: str) -> None:
    """Write the original of a rewritten IMAGE, bit for bit.

    Where the original was an ELF this is that file; where it was a bzImage, the ELF inside.
    """
    from bt import rewrite
    from bt.image import load

    loaded = load(image)
    rewrite.write(Path(output), rewrite.revert(bytes(loaded.elf), image), Path(image))
