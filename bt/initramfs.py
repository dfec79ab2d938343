"""An initial file system of one file: a static busybox, an /init, and a marker on the console.

Room: guests to try things on. It writes the kernel's own archive format, newc (kernel documentation,
driver-api/early-userspace/buffer-format.rst), with every time, owner and inode number fixed, so equal
inputs give equal bytes. It knows nothing of packages or of how the archive is booted.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MARKER = "retrap: user space reached"
"""The line that /init prints first; benches and tests wait for it."""

BLOCK = 512
"""The archive's length is a multiple of this, as cpio has it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of an archive."""

    name: str
    """Path without a leading slash."""
    mode: int
    """File type and permissions, as in `st_mode`."""
    data: bytes = b""
    """Contents of a file, or the target of a symbolic link."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""


def newc(entries: Iterable[Entry]) -> bytes:
    """Pack entries into a newc archive; inode numbers count from 1 in the order given."""
    out = bytearray()
    for number, entry in enumerate(entries, start=1):
        _append(out, entry, number)
    _append(out, Entry("TRAILER!!!", 0), 0)
    out += bytes(-len(out) % BLOCK)
    return bytes(out)


def _append(out: bytearray, entry: Entry, inode: int) -> None:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    out += bytes(-len(out) % 4)
    out += entry.data
    out += bytes(-len(out) % 4)


def read_member(archive: bytes, name: str) -> bytes:
    """Contents of a file in a newc archive that was made here. Raises KeyError where there is none of that name."""
    at = 0
    while archive[at : at + 6] == b"070701":
        fields = [int(archive[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        size, name_size = fields[6], fields[11]
        start = -(-(at + 110 + name_size) // 4) * 4
        if archive[at + 110 : at + 110 + name_size - 1] == name.encode():
            return archive[start : start + size]
        at = -(-(start + size) // 4) * 4
    raise KeyError(name)


def init_script(lines: Sequence[str] = ()) -> str:
    """The shell script that is process 1: marker, file systems, `lines`, then the end of the machine.

    The end is `poweroff -f`, which without ACPI is the kernel's "System halted" with interrupts off, or
    `reboot -f` when the command line has `retrap.end=reboot`.
    """
    body = "\n".join(lines)
    return f"""#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
echo "{MARKER}"
{body}
case " $(busybox cat /proc/cmdline) " in
*" retrap.end=reboot "*) busybox reboot -f ;;
*) busybox poweroff -f ;;
esac
"""


def initramfs(busybox: bytes, lines: Sequence[str] = ()) -> bytes:
    """A whole initial file system around a statically linked busybox; `lines` are run by its shell."""
    return initramfs_of(busybox, lines, ())


def initramfs_of(busybox: bytes, lines: Sequence[str], more: Sequence[Entry]) -> bytes:
    """The same with `more` members."""
    directories = [Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc", "sys", "tmp")]
    return newc(
        [
            *directories,
            # The kernel opens the console before /init can mount anything.
            Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            Entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
            Entry("bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
            *more,
            Entry("init", stat.S_IFREG | 0o755, init_script(lines).encode()),
        ]
    )
