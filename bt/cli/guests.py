"""`retrap guests`: what can be fetched, fetching it, and where it is.

Room: the command line. Recipes and cache are `bt.guests`'; this module prints.
"""

from __future__ import annotations

import click

from bt import guests, progress
from emulator.errors import Unavailable


@click.group()
def command() -> None:
    """Fetch Debian's stock kernels with a small user space."""


@command.command("list")
def list_command() -> None:
    """List the guests, and whether each is in the cache."""
    width = max(map(len, guests.RECIPES))
    for recipe in guests.RECIPES.values():
        try:
            kernel = next(iter(guests.find(recipe.name).packages.items()))
            state = " ".join(kernel)
        except Unavailable:
            state = "not fetched"
        click.echo(f"{recipe.name:{width}}  {recipe.summary}: {state}")


@command.command("get")
@click.argument("name")
@click.option("--run", "lines", multiple=True, metavar="LINE", help="A shell line for its /init; may be repeated.")
def get_command(name: str, lines: tuple[str, ...]) -> None:
    """Download guest NAME into the cache.

    Nothing else in retrap downloads anything.
    """
    with progress.stage(f"fetching {name}"):
        guest = guests.get(name, lines, lambda line: click.echo(line, err=True))
    _describe(guest)


@command.command("path")
@click.argument("name")
@click.option("--file", type=click.Choice(["vmlinuz", "initrd", "guest.json"]), help="One file of it.")
@click.option("--append", is_flag=True, help="The command line that boots it, instead of a path.")
def path_command(name: str, file: str | None, append: bool) -> None:
    """Print the directory of guest NAME, one file in it, or its kernel's command line."""
    guest = guests.find(name)
    if append:
        click.echo(guest.command_line)
    else:
        click.echo(guest.directory / file if file else guest.directory)


def _describe(guest: guests.Guest) -> None:
    for package, version in guest.packages.items():
        click.echo(f"{package} {version}", err=True)
    click.echo(f"in {guest.directory}; to boot it: retrap run {guest.name}")
