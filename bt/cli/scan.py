"""`retrap scan`: the sensitive instructions of an image.

Room: the command line. Finding them is `bt.scan`'s, printing them `bt.report`'s.
"""

from __future__ import annotations

import click

CLASSES = ("traps", "ignored", "leaks", "differs")


@click.command()
@click.argument("image", type=click.Path())
@click.option(
    "--class", "classes", multiple=True, type=click.Choice(CLASSES), help="Only what does this at user level."
)
@click.option(
    "--instruction", "names", multiple=True, metavar="NAME", help="Only this row of the table (`retrap isa`)."
)
@click.option("--sites", "list_sites", is_flag=True, help="List every site, not only their number.")
@click.option("--cache/--no-cache", "cached", default=True, help="Keep and use findings of earlier scans (default).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, every site included.")
def command(
    image: str, classes: tuple[str, ...], names: tuple[str, ...], list_sites: bool, cached: bool, as_json: bool
) -> None:
    """List the sensitive instructions of IMAGE, an ELF or bzImage for x86-64.

    A site is doubtful when undecodable bytes stand in the same function: it may be data.
    """
    from bt.image import load
    from bt.pagecache import PageCache
    from bt.report import json as json_report
    from bt.report import text
    from bt.scan import scan
    from emulator.errors import UsageError
    from emulator.isa.x86.table import ROW_OF_NAME

    unknown = [name for name in names if name not in ROW_OF_NAME]
    if unknown:
        raise UsageError(f"there is no instruction {unknown[0]!r} in the table; `retrap isa x86-64` prints it")
    loaded = load(image)
    sites = [
        site
        for site in scan(loaded, PageCache() if cached else None)
        if (not classes or site.row.at_user_level.value in classes) and (not names or site.row.name in names)
    ]
    if as_json:
        click.echo(json_report.dumps(json_report.scan_json(loaded, sites)), nl=False)
        return
    if list_sites:
        click.echo(text.site_table(sites))
    click.echo(f"{text.scan_table(sites)}\n{text.section_table(sites)}", nl=False)
