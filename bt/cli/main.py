"""`retrap`: the table of commands, each loaded when it is asked for.

Room: the command line's front door. It knows the names of the commands and one line of help for each, and
imports none of them, so `retrap --help` costs nothing. What a command does is in its own module.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from bt.cli.errors import report
from emulator.errors import TERMINATED

COMMANDS: dict[str, tuple[str, str]] = {
    "scan": ("bt.cli.scan:command", "List the sensitive instructions of an image."),
    "rewrite": ("bt.cli.rewrite:command", "Write an image whose sensitive instructions are patched."),
    "revert": ("bt.cli.rewrite:revert_command", "Give back the original of a rewritten image, bit for bit."),
    "check": ("bt.cli.rewrite:check_command", "Verify a rewritten image against its manifest, by hash."),
    "apply": ("bt.cli.rewrite:apply_command", "Repeat on an original what a manifest says."),
    "diff": ("bt.cli.diff:command", "Show what two images or manifests differ in."),
    "report": ("bt.cli.report:command", "Tell what was done to an image: text, JSON, SARIF or a page of HTML."),
    "export": ("bt.cli.export:command", "Label patched sites and fixups in Ghidra, IDA, Binary Ninja, rizin."),
    "run": ("bt.cli.run:command", "Run an image under the hypervisor, or natively as the reference."),
    "debug": ("bt.cli.debug:command", "Run an image for gdb, backwards as well."),
    "resume": ("bt.cli.resume:command", "Go on with a guest where a snapshot was taken of it."),
    "replay": ("bt.cli.replay:command", "Do a recorded run again, and compare everything."),
    "goto": ("bt.cli.goto:command", "Go to a place in a recorded run, backwards as well, and show the guest there."),
    "verify": ("bt.cli.verify:command", "Run an image as it is and rewritten, and compare everything."),
    "engines": ("bt.cli.engines:command", "Show which CPU engines this host has, and why others are not usable."),
    "guests": ("bt.cli.guests:command", "Fetch Debian's stock kernels with a small user space."),
    "bench": ("bt.cli.bench:command", "Measure boots, exits and scans, beside QEMU."),
    "isa": ("bt.cli.isa:command", "Print the sensitive-instruction table of an instruction set."),
    "abi": ("bt.cli.abi:command", "Print the para-virtual interface, for C, for assembler, or as JSON."),
}
"""Name of a command -> where it is ("module:attribute") and one line of help, in order of `--help`."""


class LazyGroup(click.Group):
    """A group that knows its commands' names and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None when the table has no such name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="retrap", prog_name="retrap")
def cli() -> None:
    """Run a guest kernel deprivileged: rewrite its sensitive instructions, and prove that nothing changed."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; errors are told on stderr."""
    try:
        status = cli.main(list(arguments), prog_name="retrap", standalone_mode=False)
        if sys.stdout is not None:  # None when started without one
            sys.stdout.flush()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException as error:
        return report(error)
    return status if isinstance(status, int) else 0


def main() -> NoReturn:
    """Entry point of the `retrap` command."""
    # A command makes much and drops little: looking for cycles costs more than it finds. numpy's algebra is not used,
    # so its worker threads need not start.
    gc.disable()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # As Ctrl-C does, so that children end with us and a terminal gets its settings back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
