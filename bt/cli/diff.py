"""`retrap diff`: every patched site of a rewritten image.

Room: the command line. Comparing is `bt.diff`'s, printing `bt.report`'s.
"""

from __future__ import annotations

import click


@click.command()
@click.argument("original", type=click.Path())
@click.argument("rewritten", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(original: str, rewritten: str, as_json: bool) -> None:
    """Show what differs between ORIGINAL and REWRITTEN: address, symbol, old and new code, class, tactic, reason.

    Fails when bytes differ that the rewritten image's manifest does not tell of.
    """
    from bt.diff import diff
    from bt.image import load
    from bt.report import json as json_report
    from bt.report import text

    found = diff(load(original), load(rewritten))
    if as_json:
        click.echo(json_report.dumps(json_report.diff_json(found)), nl=False)
    else:
        click.echo(text.diff_text(found), nl=False)
