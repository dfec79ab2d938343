"""Modules of a fetched guest's kernel, for its initial file system: drivers that Debian does not build in.

Room: guests to try things on. They come from the same package as the kernel and are kept in `modules` beside it:
`retrap guests get` writes them with it, and `get` here adds them to a guest that was fetched without.
"""

from __future__ import annotations

import re
import stat
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from bt.debian import Apt, Package, extract_all
from bt.guests import PLACE, RECIPES, Guest, recipe
from bt.initramfs import Entry
from emulator.errors import Unavailable

DISK = ("xen-blkfront",)
"""Xen's block front end."""
BLOCK = ("crc16", "crc32c_generic", "mbcache", "jbd2", "ext4", "xen-blkfront")
"""Xen's block front end, and ext4 with what it needs, in the order in which they are loaded."""
NETWORK = ("xen-netfront",)
BLOCK_SERVER = ("xen-blkback",)
"""Xen's block back end, for a driver domain; then its network back end, and what connects that to other interfaces."""
NETWORK_SERVER = ("llc", "stp", "bridge", "xen-netback")
ALL = (*BLOCK, *NETWORK, *BLOCK_SERVER, *NETWORK_SERVER)


def find(guest: Guest, names: Iterable[str]) -> dict[str, bytes]:
    """Modules by name, without downloading. Raises Unavailable for one that is not there."""
    found = {}
    for name in names:
        try:
            found[name] = (guest.directory / PLACE / f"{name}.ko").read_bytes()
        except OSError:
            if not recipe(guest.name).modules:
                having = ", ".join(known for known, wanted in RECIPES.items() if wanted.modules)
                raise Unavailable(f"guest {guest.name} comes without drivers for Xen's devices; use {having}") from None
            raise Unavailable(
                f"module {name} of guest {guest.name} is not in the cache; "
                f"`retrap guests get {guest.name}` fetches the guest anew, with it"
            ) from None
    return found


def get(guest: Guest, names: Iterable[str]) -> None:
    """Download the package of the guest's kernel and keep these modules of it. Raises Unavailable."""
    kernel = next(name for name in guest.packages if re.match(r"linux-image-", name))
    with tempfile.TemporaryDirectory(prefix=f".{guest.name}.", dir=guest.directory.parent) as scratch:
        package = Apt(recipe(guest.name).architecture, Path(scratch)).download(kernel)
        if package.version != guest.packages[kernel]:
            raise Unavailable(
                f"{kernel} is {package.version} now, and the guest's is {guest.packages[kernel]}; fetch the guest anew"
            )
        place = guest.directory / PLACE
        place.mkdir(exist_ok=True)
        write(package, place, list(names))


def write(package: Package, place: Path, names: Sequence[str]) -> None:
    """Write modules of a kernel's package into a directory. Raises Unavailable."""
    patterns = [rf"(usr/)?lib/modules/.*/{re.escape(name)}\.ko" for name in names]
    for name, (_path, contents) in zip(names, extract_all(package, patterns), strict=True):
        (place / f"{name}.ko").write_bytes(contents)


def entries(modules: dict[str, bytes]) -> list[Entry]:
    """Modules as members of an initial file system, in /modules."""
    directory = Entry("modules", stat.S_IFDIR | 0o755)
    return [directory, *(Entry(f"modules/{name}.ko", stat.S_IFREG | 0o644, data) for name, data in modules.items())]


def lines(names: Iterable[str]) -> list[str]:
    """Shell lines that load them."""
    return [f"busybox insmod /modules/{name}.ko" for name in names]


def until(condition: str) -> str:
    """A shell line that waits until `test` says so."""
    return f"while ! [ {condition} ]; do busybox sleep 0.1; done"


def main() -> None:
    """Fetch the modules of the guests that are named, where one is missing."""
    import sys

    from bt import guests

    for name in sys.argv[1:]:
        guest = guests.find(name)
        try:
            find(guest, ALL)
        except Unavailable:
            get(guest, ALL)


if __name__ == "__main__":
    main()
