"""`retrap export`: patched sites and fixups, labelled in a disassembler.

Room: the command line. The scripts are `bt.report.export`'s.
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("image", type=click.Path())
@click.option("--to", "tool", type=click.Choice(("ghidra", "ida", "binja", "rizin")), required=True)
@click.option("-o", "--output", type=click.Path(), help="Write it to this file, and not to stdout.")
@click.option("--all", "every", is_flag=True, help="Label the sites that were left as they are, too.")
def command(image: str, tool: str, output: str | None, every: bool) -> None:
    """Write a script that labels the patched sites and the fixups of IMAGE, a rewritten image or its manifest.

    ghidra, ida and binja: Python, run inside the tool; it adds the fixups' code as well. rizin: commands, which
    radare2 takes, too.
    """
    from bt import progress
    from bt.output import check, write
    from bt.report import source
    from bt.report.export import export

    check([None if output is None else Path(output)], [Path(image)])
    with progress.stage(f"reading {image}"):
        script = export(source.read(image), tool, every)
    if output is None:
        click.echo(script, nl=False)
    else:
        write(Path(output), script.encode(), Path(image))
