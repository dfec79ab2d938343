"""A third party: the console of QEMU's TCG for the same kernel, initramfs and command line.

Room: `bt/verify`. QEMU runs the guest at full privilege on another machine by other people; the rules of
`bt.console_compare` say what two machines may print differently.
"""

from __future__ import annotations

import re
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

ARCHITECTURES: Final = {"i386": "i386", "aarch64": "arm64", "armv7": "armhf", "mips32": "mipsel"}
"""Row of `bt.qemu.OTHERS` by instruction set; these kernels boot as they are packaged, others as their ELF by PVH."""
SECONDS: Final = 180.0
"""Host time that QEMU gets."""
_TIMESTAMP: Final = re.compile(r"^\[ *[\d.]+\] ")


def compare_with_qemu(verification: Verification, options: Options, initrd: Path | None) -> None:
    """Add to `verification` how the console of each rewritten run compares with QEMU's.

    Where there is no QEMU a note says so. Raises `UsageError` for a guest that QEMU cannot be given in the same way.
    """
    guest = verification.guest
    architecture = ARCHITECTURES.get(guest.image.isa.name)
    program = qemu.PROGRAM if architecture is None else qemu.OTHERS[architecture][0]
    if shutil.which(program) is None:
        verification.notes.append(f"the console was not compared with QEMU's: {program} is not on this host")
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
    architecture = ARCHITECTURES.get(verification.guest.image.isa.name)
    if architecture is not None:
        kernel, memory = Path(verification.guest.image.path), options.memory >> 20
        line = qemu.other_command(architecture, kernel, initrd, options.command_line, memory)
        return _until(verification, line, _last_words(verification.reference.console))
    with tempfile.TemporaryDirectory(prefix="retrap-qemu.") as scratch:
        elf = Path(scratch) / "vmlinux"
        elf.write_bytes(verification.guest.image.elf)
        line = qemu.command(elf, initrd, options.command_line, qemu.NEAREST, options.memory >> 20)
        return _until(verification, line, qemu.HALTED)


def _last_words(console: bytes) -> str:
    """The last line of a console without its timestamp: where the other run is over as well."""
    lines = console.decode(errors="replace").strip().split("\n")
    return _TIMESTAMP.sub("", lines[-1]).strip()


def _until(verification: Verification, line: list[str], marker: str) -> bytes:
    from bt.bench.process import time_to_marker

    timing = time_to_marker(line, marker, SECONDS)
    if timing.seconds is None:
        raise Unavailable(
            f"QEMU did not bring {verification.guest.name} to its end within {SECONDS:g} s; last: {timing.tail[-80:]!r}"
        )
    return timing.console
