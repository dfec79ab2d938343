"""`retrap isa`: the sensitive-instruction table of an instruction set, its verdict and its proof.

Room: the command line. The table is `emulator.isa`'s and its printing `bt.isa_report`'s; this
module chooses what is printed.
"""

from __future__ import annotations

import json

import click

from bt import isa_report, progress
from emulator.isa.isas import ISAS


@click.command()
@click.argument("isa", metavar="ISA", type=click.Choice(tuple(ISAS)))
@click.option("--prove", is_flag=True, help="Run every row in kernel and in user mode and show what it did.")
@click.option("--row", "names", multiple=True, metavar="NAME", help="With --prove: only this row; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(isa: str, prove: bool, names: tuple[str, ...], as_json: bool) -> None:
    """Print the table of sensitive instructions of ISA, and whether trap-and-emulate alone can virtualise it.

    With --prove the status is 1 when a row did not do what the table says.
    """
    if names and not prove:
        raise click.UsageError("--row chooses what to run: give --prove with it")
    chosen = ISAS[isa]
    with progress.stage(f"running the rows of {isa}"):
        proofs = isa_report.prove_rows(chosen, names) if prove else []
    if as_json:
        click.echo(json.dumps(isa_report.table_json(chosen, proofs), indent=1))
    elif prove:
        click.echo(isa_report.proofs_text(proofs), nl=False)
    else:
        click.echo(f"{isa_report.table_text(chosen)}\n{isa_report.verdict(chosen)}", nl=False)
    isa_report.refuse_refuted(proofs)
