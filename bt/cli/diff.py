"""`retrap diff`: what two images, or two manifests, differ in.

Room: the command line. Comparing is `bt.diff`'s, printing `bt.report`'s.
"""

from __future__ import annotations

import click


@click.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, a: str, b: str, as_json: bool) -> None:
    """Show what differs between A and B: images, or manifests that `retrap rewrite --manifest` wrote.

    An original and the image that was made from it: every patched site with old and new code, class, tactic and
    reason. The status is 1 when bytes differ that the rewritten image's manifest does not tell of, else 0.

    Anything else: sites gained, lost, or given another tactic. An original is scanned. The status is 1 when there is
    such a difference, else 0.
    """
    from bt import progress
    from bt.diff import Comparison, diff
    from bt.report import json as json_report
    from bt.report import text

    with progress.stage(f"comparing {a} and {b}"):
        found = diff(a, b)
    if isinstance(found, Comparison):
        report = json_report.comparison_json(found) if as_json else text.comparison_text(found)
    else:
        report = json_report.rewrite_json(found) if as_json else text.diff_text(found)
    click.echo(report if isinstance(report, str) else json_report.dumps_rows(report), nl=False)
    if isinstance(found, Comparison) and not found.same:
        context.exit(1)
