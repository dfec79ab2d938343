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
@click.option("--only", multiple=True, metavar="EXPRESSION", help="Only sites that match (`retrap rewrite --help`).")
@click.option("--except", "but", multiple=True, metavar="EXPRESSION", help="No sites that match.")
@click.option("--sites", "list_sites", is_flag=True, help="List every site, not only their number.")
@click.option("--cache/--no-cache", "cached", default=True, help="Keep and use findings of earlier scans (default).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, every site included.")
def command(
    image: str,
    classes: tuple[str, ...],
    names: tuple[str, ...],
    only: tuple[str, ...],
    but: tuple[str, ...],
    list_sites: bool,
    cached: bool,
    as_json: bool,
) -> None:
    """List the sensitive instructions of IMAGE, a kernel's file or a fetched guest (`retrap guests`).

    Each is certain, likely, or may be data ("doubtful"), where what is no instruction stands in the same function.
    """
    from bt import match, progress
    from bt.cli import values
    from bt.image import load
    from bt.pagecache import PageCache
    from bt.report import json as json_report
    from bt.report import text
    from bt.scan import scan
    from emulator.errors import UsageError

    chosen = match.chosen(only, but, ())
    path = values.kernel(image)
    with progress.stage(f"reading {image}"):
        loaded = load(path)
    known = {row.name for row in loaded.isa.rows}
    unknown = [name for name in names if name not in known]
    if unknown:
        isa = loaded.isa.name
        raise UsageError(f"there is no instruction {unknown[0]!r} in the table; `retrap isa {isa}` prints it")
    with progress.stage(f"scanning {image}"):
        found = scan(loaded, PageCache(isa=loaded.isa.name) if cached else None)
    sites = [
        site
        for site in found
        if (not classes or site.row.at_user_level.value in classes)
        and (not names or site.row.name in names)
        and (chosen is None or chosen(site))
    ]
    if as_json:
        click.echo(json_report.dumps(json_report.scan_json(loaded, sites)), nl=False)
        return
    if list_sites:
        click.echo(text.site_table(sites))
    click.echo(f"{text.scan_table(sites)}\n{text.section_table(sites)}", nl=False)
