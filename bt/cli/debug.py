"""`retrap debug`: a guest under gdb, from its first instruction on.

Room: the command line. It opens a session, writes a symbol file, says how gdb is called, and serves gdb's protocol
(`bt.gdb.server`) until the guest ends.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bt.cli.run import ENGINE_HELP, MODES

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from bt.session import Session
    from bt.terminal import Keyboard


@click.command()
@click.argument("image")
@click.option("--virt", type=click.Choice(MODES), help="As for `retrap run`; by default inline.")
@click.option("--engine", default="unicorn", show_default=True, metavar="NAME", help=ENGINE_HELP)
@click.option("--initrd", type=click.Path(path_type=Path), metavar="FILE", help="The initial file system.")
@click.option("--append", metavar="TEXT", help="The kernel's command line.")
@click.option("--memory", default="256M", show_default=True, metavar="SIZE", help="Guest memory, in K, M or G.")
@click.option("--kaslr", metavar="OFFSET", help="Move the kernel in virtual memory: bytes, or seed:TEXT to choose.")
@click.option("--port", default=1234, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@click.option(
    "--listen",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Where to listen. Whoever can connect there reads and changes the guest, and makes files by `monitor trace`.",
)
@click.option("--reverse", is_flag=True, help="Keep a history, for reverse-stepi and reverse-continue.")
@click.option("--console", "typed", is_flag=True, help="What is typed, or comes on stdin, goes to the guest's console.")
@click.option("--symbols", type=click.Path(path_type=Path), metavar="FILE", help="Where to write the symbol file.")
@click.option("--cache/--no-cache", "cached", default=True, help="Keep and use findings of earlier scans (default).")
def command(
    image: str,
    virt: str | None,
    engine: str,
    initrd: Path | None,
    append: str | None,
    memory: str,
    kaslr: str | None,
    port: int,
    listen: str,
    reverse: bool,
    typed: bool,
    symbols: Path | None,
    cached: bool,
) -> int:
    """Run IMAGE for gdb, which connects to a port of this host; the guest waits before its first instruction.

    The command prints how gdb is called. The guest's console is on stdout; its input is stdin with --console, on a
    terminal as of `retrap run` (Ctrl-A x ends the guest).
    """
    from bt import para, xen
    from bt.cli import values
    from bt.cli.run import guest_files
    from bt.image import load
    from bt.manifest import mode_of
    from bt.session import Options, Session, read_initrd
    from emulator.errors import UsageError

    if virt == xen.MODE and reverse:
        raise UsageError(xen.not_saved())
    kernel, initrd, command_line = guest_files(image, initrd, append, virt, None)
    loaded = load(kernel)
    options = Options(
        mode=virt or mode_of(loaded) or (para.MODE if para.version_of(loaded) is not None else "inline"),
        engine=engine,
        memory=values.size(memory),
        initrd=read_initrd(initrd) if initrd is not None else b"",
        command_line=command_line,
        delta=values.virtual_offset(kaslr, loaded) if kaslr is not None else 0,
        cache=cached,
    )
    with contextlib.ExitStack() as stack:
        console = _Console()
        session = Session(loaded, options, console)
        stack.callback(session.close)
        keyboard = _connect_keyboard(session) if typed else contextlib.nullcontext()
        if symbols is None:
            symbols = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retrap-"))) / f"{kernel.stem}.sym"
        return _serve(session, console, listen, port, reverse, symbols, keyboard)


def _connect_keyboard(session: Session) -> Keyboard:
    """Have stdin be the guest's input, as in `retrap run`. Before the history begins, which keeps what was typed."""
    from bt.terminal import Keyboard, Typed, descriptor_of
    from emulator.machine import EndKind, Outcome

    machine, driver = session.machine, session.driver
    keyboard = Keyboard(descriptor_of(sys.stdin), lambda: driver.end(Outcome(EndKind.INTERRUPTED)))
    board = machine.board
    machine.poll_input = Typed(keyboard, board.com1, lambda: board.next_wake() is not None).poll
    return keyboard


def _serve(
    session: Session,
    console: _Console,
    host: str,
    port: int,
    reverse: bool,
    symbols: Path,
    keyboard: AbstractContextManager[object],
) -> int:
    from bt.gdb.monitor import Monitor
    from bt.gdb.server import Server, listen
    from bt.gdb.symbol_file import write_symbol_file
    from bt.gdb.targets import target_for, translation
    from paravirt.services.debug import Debugger

    target = target_for(session)
    driver = session.driver
    debugger = Debugger(driver, translation(session), reverse=reverse)
    if debugger.timeline is not None:
        console.connect(debugger.timeline)
    count = write_symbol_file(session.image, symbols, session.options.delta)
    listener = listen(host, port)
    port = listener.getsockname()[1]
    program = "gdb" if target.architecture.startswith("i386") else "gdb-multiarch"
    called = f"{program} {symbols} -ex 'target remote {host}:{port}'"
    monitor = Monitor(session, debugger, target, f"{count} symbols in {symbols}; in gdb: symbol-file {symbols}")
    _say(f"{count} symbols; the guest waits for: {called}")
    try:
        server = Server(debugger, target, listener, monitor, _say, keyboard)
        server.symbol_file = str(symbols.resolve())
        outcome = server.serve()
    finally:
        monitor.close()
    if outcome is not None:
        _say(f"the guest ended: {outcome.kind.value}{' ' + outcome.detail if outcome.detail else ''}")
        return outcome.status & 0xFF
    return 0


class _Console:
    """The guest's console on stdout, once: what is done again behind a way back is not printed again."""

    def __init__(self) -> None:
        from paravirt.services.timeline import ConsoleOnce

        self._once = ConsoleOnce(_print)

    def connect(self, timeline: object) -> None:
        """The timeline says how much is printed where it is."""
        timeline.console = self._once  # type: ignore[attr-defined]

    def __call__(self, data: bytes) -> None:
        """The guest prints."""
        self._once(data)


def _print(data: bytes) -> None:
    if sys.stdout is not None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _say(sentence: str) -> None:
    click.echo(f"retrap: {sentence}", err=True)
