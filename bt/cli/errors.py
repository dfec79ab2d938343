"""From an error to one sentence on stderr and an exit status.

Room: the command line's last line of defence. The kinds of error and their statuses are
`emulator.errors`'; this module only decides what a user sees. A traceback is shown for retrap's own
mistakes and for nothing else.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback

import click

from emulator.errors import INTERNAL_ERROR, INTERRUPTED, EngineCrashed, RetrapError, Unwritable, UsageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What writing to a full or broken device gives."""


def report(error: BaseException) -> int:
    """Tell the user about `error` on stderr and return the exit status of the process.

    Never raises: a closed stderr changes nothing about the status.
    """
    try:
        return _report(error)
    except (BrokenPipeError, ValueError):
        return INTERNAL_ERROR


def _report(error: BaseException) -> int:
    if isinstance(error, RetrapError):
        _say(str(error))
        if isinstance(error, EngineCrashed) and error.last:
            from bt.lost import lines

            print("\n".join(lines(error.last)), file=sys.stderr, flush=True)
        return error.exit_status
    if isinstance(error, click.ClickException):
        error.show(sys.stderr)
        return error.exit_code
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        # The terminal has echoed ^C on the line of the guest's console: begin a new one. Click has, for an Abort.
        if isinstance(error, KeyboardInterrupt):
            sys.stderr.write("\n")
        _say("interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return _close_output()
    if isinstance(error, OSError) and error.filename is None and error.errno in _FULL:
        _close_output()
        _say(f"what the command prints cannot be written ({error.strerror}); make room, or give it another place")
        return Unwritable.exit_status
    if isinstance(error, OSError) and error.filename is not None:
        _say(f"{os.fsdecode(error.filename)}: {error.strerror or error}")
        return UsageError.exit_status
    traceback.print_exception(error)
    _say("this is a mistake in retrap itself; please report it with the lines above")
    return INTERNAL_ERROR


def _say(sentence: str) -> None:
    print(f"retrap: {sentence}", file=sys.stderr, flush=True)


def _close_output() -> int:
    """The reader of stdout went away (`retrap ... | head`): end quietly, as other filters do."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
