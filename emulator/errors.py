"""The errors a user can cause, each kind with the exit status of the command line.

This is the lowest room of the house, so every layer can raise these. It knows nothing of the other rooms.
The text of an error is one sentence that names the thing, the value and the way out; `retrap` prints it as it is.
A guest's own faults are no Python exceptions: an error is raised only where a run cannot go on.
"""

from __future__ import annotations

from typing import Any, ClassVar

BRIEF = 160
"""Characters that are quoted of what a file, or a library about it, says."""


def brief(said: object) -> str:
    """What a file or a library said, to be quoted in a sentence: one line of bearable length, printable everywhere."""
    if isinstance(said, UnicodeDecodeError):  # its own representation holds all that was to be decoded
        return f"byte {said.start} is no {said.encoding}"
    text = repr(said) if isinstance(said, BaseException) else str(said)
    line = " ".join(text[: 4 * BRIEF].encode("ascii", "backslashreplace").decode().split())
    return line if len(line) <= BRIEF else line[:BRIEF] + "..."


class RetrapError(Exception):
    """Base of everything that the command line reports in one sentence and without a traceback."""

    exit_status: ClassVar[int] = 1
    """Exit status of the process when this error ends it."""
    meaning: ClassVar[str] = "something that retrap cannot do"
    """One clause for the documentation's table of exit statuses."""


class VerifyFailed(RetrapError):
    """Two runs that must agree do not."""

    exit_status: ClassVar[int] = 1
    meaning: ClassVar[str] = "a comparison failed: the rewritten guest did not behave as the reference"


class UsageError(RetrapError):
    """The command line, or an argument of a public function, makes no sense."""

    exit_status: ClassVar[int] = 2
    meaning: ClassVar[str] = "the command line makes no sense, or a file named on it cannot be read"


class BadImage(RetrapError):
    """A file is no guest that retrap can load: not an ELF, wrong ISA, truncated, no entry, too large."""

    exit_status: ClassVar[int] = 3
    meaning: ClassVar[str] = "the image or initramfs is no guest that retrap can load"


class GuestFault(RetrapError):
    """The guest was lost: it faulted three deep, jumped to nowhere, or attacked the hypervisor."""

    exit_status: ClassVar[int] = 4
    meaning: ClassVar[str] = "the guest was lost: it faulted three deep, or jumped where nothing is"


class Timeout(RetrapError):
    """A run used up the guest time or the host time that it was given."""

    exit_status: ClassVar[int] = 5
    meaning: ClassVar[str] = "the guest did not end within the time allowed"


class EngineMissing(RetrapError):
    """No CPU engine on this host can run the guest as asked."""

    exit_status: ClassVar[int] = 6
    meaning: ClassVar[str] = "the CPU engine that was asked for is not usable on this host"


class Unavailable(RetrapError):
    """Something outside, such as a package, a program or the network, is not to be had."""

    exit_status: ClassVar[int] = 7
    meaning: ClassVar[str] = "a package or program that the command needs is not to be had"


class Unwritable(UsageError):
    """An output cannot be written: no right, no room, no such directory. Nothing partial is left."""

    exit_status: ClassVar[int] = 8
    meaning: ClassVar[str] = "an output file cannot be written; nothing partial is left"


class AlreadyRewritten(UsageError):
    """An image that is to be rewritten was rewritten before."""

    exit_status: ClassVar[int] = 9
    meaning: ClassVar[str] = "the image was rewritten before; revert it first"


class WrongManifest(UsageError):
    """A plan or manifest is not for this image, or not for this mode."""

    exit_status: ClassVar[int] = 10
    meaning: ClassVar[str] = "the manifest or plan belongs to another image"


class Tampered(BadImage):
    """A rewritten image is not what its manifest says."""

    exit_status: ClassVar[int] = 11
    meaning: ClassVar[str] = "a rewritten image was changed after it was rewritten"


class CoverageMissed(RetrapError):
    """Fewer sites than asked for run without a trap."""

    exit_status: ClassVar[int] = 12
    meaning: ClassVar[str] = "fewer sites run without a trap than `--fail-under` asks for"


class BadSnapshot(RetrapError):
    """A snapshot or a recording cannot be used: damaged, of another format, or of another machine."""

    exit_status: ClassVar[int] = 13
    meaning: ClassVar[str] = "a snapshot or recording is damaged, of another format, or of another machine"


class EngineCrashed(GuestFault):
    """The CPU engine's native code crashed in a run, and the guest with it; the process goes on.

    The engine cannot be run any more. Guest memory, console and the last registers can be looked at.
    """

    exit_status: ClassVar[int] = 14
    meaning: ClassVar[str] = "the CPU engine's native code crashed, and the guest is lost with it"

    signal: str = ""
    """Name of the signal."""
    address: int = 0
    """Guest-virtual address of the last instruction known, in the block that crashed or before it."""
    last_exit: str = ""
    """The exit that was reported last."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.last: dict[str, Any] = {}
        """The guest's last state, where whoever ran it says so (`bt.lost`)."""

    @classmethod
    def by(cls, signal: str, address: int, last_exit: str) -> EngineCrashed:
        """The error of a run in which a signal came; see the fields."""
        error = cls(
            f"the CPU engine crashed ({signal}) and the guest is lost at {address:#x}; its last exit was {last_exit}"
        )
        error.signal, error.address, error.last_exit = signal, address, last_exit
        return error


INTERRUPTED = 130
"""Exit status after Ctrl-C, by the shell's convention of 128 + SIGINT."""

TERMINATED = 143
"""Exit status after SIGTERM, by the same convention."""

INTERNAL_ERROR = 70
"""Exit status when retrap itself is at fault (sysexits EX_SOFTWARE); only then is there a traceback."""

KINDS: tuple[type[RetrapError], ...] = (
    VerifyFailed,
    UsageError,
    BadImage,
    GuestFault,
    Timeout,
    EngineMissing,
    Unavailable,
    Unwritable,
    AlreadyRewritten,
    WrongManifest,
    Tampered,
    CoverageMissed,
    BadSnapshot,
    EngineCrashed,
)
"""Every kind in order of exit status; the documentation's table is printed from it."""
