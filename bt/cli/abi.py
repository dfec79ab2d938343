"""`retrap abi`: the para-virtual interface, as what a guest's kernel includes.

Room: the command line. What is printed is `paravirt.abi.printing`'s.
"""

from __future__ import annotations

import click

from paravirt.abi import calls, printing

PRINTERS = {"header": printing.header, "asm": printing.assembler, "json": printing.json_text}


@click.command()
@click.option("--header", "what", flag_value="header", help="The C header (retrap.h), which includes the next one.")
@click.option("--asm", "what", flag_value="asm", help="What assembler includes (retrap_asm.h).")
@click.option("--json", "what", flag_value="json", help="All of it as JSON.")
@click.option("--version", "what", flag_value="version", help="The version alone (default).")
def command(what: str | None) -> None:
    """Print the para-virtual interface: what a kernel is ported to, to be run with `--virt para`.

    It is one for all instruction sets; samples/include has the same files.
    """
    printer = PRINTERS.get(what or "version")
    click.echo(printer() if printer else f"{calls.ABI_MAJOR}.{calls.ABI_MINOR}\n", nl=False)
