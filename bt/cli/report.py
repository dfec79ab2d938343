"""`retrap report`: what was done to an image, in the format that is asked for.

Room: the command line. The contents are `bt.report`'s.
"""

from __future__ import annotations

from pathlib import Path

import click

FORMATS = ("text", "json", "sarif", "html")


@click.command()
@click.argument("image", type=click.Path())
@click.option("--format", "name", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("-o", "--output", type=click.Path(), help="Write it to this file, and not to stdout.")
def command(image: str, name: str, output: str | None) -> None:
    """Tell what was done to IMAGE, a rewritten image or the manifest that was written beside one.

    text for people; json by a published schema; sarif (2.1.0) for tools that collect findings; html: one page that
    needs no network, with search, filters, a map of the image and old and new code side by side.
    """
    from bt import progress
    from bt.output import check, write
    from bt.report import source
    from bt.report.formats import render

    check([None if output is None else Path(output)], [Path(image)])
    with progress.stage(f"reading {image}"):
        account = source.read(image)
    with progress.stage(f"making the {name} report"):
        report = render(account, name)
    if output is None:
        click.echo(report, nl=False)
    else:
        write(Path(output), report.encode(), Path(image))
