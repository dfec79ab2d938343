"""A third party: the console of QEMU's TCG for the same kernel, initramfs and command line.

Room: `bt/verify`. QEMU runs the guest at full privilege on another machine by other people; the rules of
`bt.console_compare` say what two machines may print differently.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt import qemu
from bt.console_compare import compare
from emulator.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from bt.session import Options
    from bt.verify import Verification

SECONDS: Final = 180.0
"""Host time that QEMU gets."""


def compare_with_qemu(verification: Verification, options: Options, initrd: Path | None) -> None:
    """Add to `verification` how the console of each rewritten run compares with QEMU's.

    Where there is no QEMU a note says so. Raises `UsageError` for a guest that QEMU cannot be given in the same way.
    """
    guest = verification.guest
    if shutil.which(qemu.PROGRAM) is None:
        verification.notes.append(f"the console was not compared with QEMU's: {qemu.PROGRAM} is not on this host")
        return
    if options.delta or options.physical_delta:
        raise UsageError("QEMU loads a kernel where it is linked; leave out --kaslr and --physical, or --qemu")
    if guest.image.linux is None or initrd is None:
        verification.notes.append(
            "the console was not compared with QEMU's: that is for a Linux with an initramfs, whose console rules are "
            "known and whose end is"
        )
        return
    theirs = _console(verification, options, initrd)
    for comparison in verification.comparisons:
        run = comparison.pair.rewritten
        verification.consoles.append((run.mode, compare(run.console, theirs)))


def _console(verification: Verification, options: Options, initrd: Path) -> bytes:
    """QEMU's console up to the guest's end."""
    from bt.bench.process import time_to_marker

    with tempfile.TemporaryDirectory(prefix="retrap-qemu.") as scratch:
        elf = Path(scratch) / "vmlinux"
        elf.write_bytes(verification.guest.image.elf)
        line = qemu.command(elf, initrd, options.command_line, qemu.NEAREST, options.memory >> 20)
        timing = time_to_marker(line, qemu.HALTED, SECONDS)
    if timing.seconds is None:
        raise Unavailable(
            f"QEMU did not bring {verification.guest.name} to its end within {SECONDS:g} s; last: {timing.tail[-80:]!r}"
        )
    return timing.console
