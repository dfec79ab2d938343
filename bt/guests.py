"""Stock kernels to run: fetched by package name, kept in the user's cache with a small user space.

Room: guests to try things on. `get` is the only function that downloads anything; `find` only looks. A guest is a
directory with `vmlinuz` (as packaged), `initrd` (one static busybox and an /init) and `guest.json`, which
says where they came from. The directory is made beside its place and renamed, so it is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bt.debian import Apt, extract
from bt.initramfs import MARKER, initramfs
from emulator.errors import Unavailable, UsageError

FORMAT = 1
"""Version of `guest.json`; a guest with another one is fetched again."""

COMMAND_LINE = "console=ttyS0 panic=-1 acpi=off noapic nolapic pci=off tsc_early_khz=1000000"
"""Boots on the `pc` board (8250, 8259 pair, 8254, CMOS) and on QEMU's `pc,acpi=off`. Without HPET and PM timer the
kernel would calibrate its TSC against nothing; `tsc_early_khz` tells it instead. `panic=-1` reboots at once."""

VIRT_COMMAND_LINE = "console=ttyAMA0 panic=-1"
"""Boots on the `virt` board and on QEMU's."""

MALTA_COMMAND_LINE = "console=ttyS0 panic=-1 nokaslr"
"""Boots on the `malta` board (GT64120, 16550, 8259 pair, 8254, CMOS) and on QEMU's `malta`. The kernel stays where it
is linked, so that what is known of its text holds."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a guest is made."""

    name: str
    summary: str
    architecture: str
    """Debian's name for it."""
    kernel: str
    """A package whose dependency is the newest kernel."""
    kernel_pattern: str
    """What that dependency is named like."""
    command_line: str
    modules: bool = False
    """Drivers of the kernel's that it has as modules come with it (`bt.guest_modules`)."""


PLACE = "modules"
"""The directory of modules in a guest's."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest in the cache."""

    name: str
    directory: Path
    command_line: str
    """Boots it on the `pc` board; ends in power-off, or with `retrap.end=reboot` added in a reboot."""
    marker: str
    """The line that its user space prints first."""
    packages: dict[str, str]
    """Package -> version."""
    sha256: dict[str, str]
    """File -> SHA-256 in hexadecimal."""

    @property
    def kernel(self) -> Path:
        """The kernel, as packaged (a bzImage)."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initial file system."""
        return self.directory / "initrd"


_KERNEL = r"linux-image-\d[\w.+~-]*"

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "debian-amd64",
            "Debian's stock kernel for 64-bit PCs",
            "amd64",
            "linux-image-amd64",
            _KERNEL + r"-amd64(-unsigned)?",
            COMMAND_LINE,
            modules=True,
        ),
        Recipe(
            "debian-amd64-cloud",
            "Debian's kernel for virtual machines",
            "amd64",
            "linux-image-cloud-amd64",
            _KERNEL + r"-cloud-amd64(-unsigned)?",
            COMMAND_LINE,
        ),
        Recipe(
            "debian-i386",
            "Debian's kernel for 32-bit PCs without PAE",
            "i386",
            "linux-image-686",
            _KERNEL + r"-686(-unsigned)?",
            COMMAND_LINE,
        ),
        Recipe(
            "debian-i386-pae",
            "Debian's kernel for 32-bit PCs with PAE",
            "i386",
            "linux-image-686-pae",
            _KERNEL + r"-686-pae(-unsigned)?",
            COMMAND_LINE,
        ),
        Recipe(
            "debian-arm64",
            "Debian's kernel for 64-bit Arm",
            "arm64",
            "linux-image-arm64",
            _KERNEL + r"-arm64(-unsigned)?",
            VIRT_COMMAND_LINE,
        ),
        Recipe(
            "debian-arm64-cloud",
            "Debian's kernel for 64-bit Arm virtual machines",
            "arm64",
            "linux-image-cloud-arm64",
            _KERNEL + r"-cloud-arm64(-unsigned)?",
            VIRT_COMMAND_LINE,
        ),
        Recipe(
            "debian-armhf",
            "Debian's kernel for 32-bit Arm with hardware floating point",
            "armhf",
            "linux-image-armmp",
            _KERNEL + r"-armmp(-unsigned)?",
            VIRT_COMMAND_LINE,
        ),
        Recipe(
            "debian-mipsel",
            "Debian's kernel for MIPS Malta boards, little-endian",
            "mipsel",
            "linux-image-4kc-malta",
            _KERNEL + r"-4kc-malta",
            MALTA_COMMAND_LINE,
        ),
    )
}
"""Every guest that can be fetched, by name."""


def cache_directory() -> Path:
    """Where guests are kept: `$XDG_CACHE_HOME/retrap/guests`, by default below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    cache = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return cache / "retrap" / "guests"


def recipe(name: str) -> Recipe:
    """The recipe named `name`; raises UsageError with the names there are."""
    try:
        return RECIPES[name]
    except KeyError:
        raise UsageError(f"no guest is named {name!r}; there are {', '.join(RECIPES)}") from None


def find(name: str) -> Guest:
    """The guest from the cache, without downloading; raises Unavailable when it is not there or not whole."""
    directory = cache_directory() / recipe(name).name
    try:
        record = json.loads((directory / "guest.json").read_text())
        if record["format"] != FORMAT:
            raise Unavailable(f"guest {name} was fetched by another version; `retrap guests get {name}` renews it")
        guest = Guest(
            name,
            directory,
            str(record["command_line"]),
            str(record["marker"]),
            dict(record["packages"]),
            dict(record["sha256"]),
        )
    except FileNotFoundError:
        raise Unavailable(f"guest {name} is not in the cache; `retrap guests get {name}` fetches it") from None
    except (ValueError, KeyError, TypeError):
        raise Unavailable(f"{directory}/guest.json is damaged; `retrap guests get {name}` makes it anew") from None
    if not (guest.kernel.is_file() and guest.initrd.is_file()):
        raise Unavailable(f"guest {name} in {directory} is incomplete; `retrap guests get {name}` makes it anew")
    return guest


def get(name: str, lines: Sequence[str] = (), say: Callable[[str], None] = lambda _: None) -> Guest:
    """Download the guest and put it into the cache, replacing what is there.

    `lines` are run by the guest's shell after the marker. Raises Unavailable when a package cannot be had.
    """
    wanted = recipe(name)
    place = cache_directory() / wanted.name
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=place.parent) as scratch:
        built = Path(scratch) / "guest"
        built.mkdir()
        _build(wanted, built, Path(scratch), lines, say)
        _replace(built, place)
    return find(name)


def _build(wanted: Recipe, built: Path, scratch: Path, lines: Sequence[str], say: Callable[[str], None]) -> None:
    downloads = scratch / "packages"
    downloads.mkdir()
    apt = Apt(wanted.architecture, downloads)
    kernel_name = apt.dependency(wanted.kernel, wanted.kernel_pattern)
    say(f"downloading {kernel_name}")
    kernel = apt.download(kernel_name)
    say("downloading busybox-static")
    busybox = apt.download("busybox-static")
    files = {
        "vmlinuz": extract(kernel, r"boot/vmlinuz-.*")[1],
        "initrd": initramfs(extract(busybox, r"(usr/)?bin/busybox")[1], lines),
    }
    for file, contents in files.items():
        (built / file).write_bytes(contents)
    if wanted.modules:
        from bt import guest_modules

        (built / PLACE).mkdir()
        guest_modules.write(kernel, built / PLACE, guest_modules.ALL)
    record = {
        "format": FORMAT,
        "recipe": asdict(wanted),
        "packages": {package.name: package.version for package in (kernel, busybox)},
        "sha256": {file: hashlib.sha256(contents).hexdigest() for file, contents in files.items()},
        "command_line": wanted.command_line,
        "marker": MARKER,
        "lines": list(lines),
    }
    (built / "guest.json").write_text(json.dumps(record, indent=2) + "\n")


def _replace(built: Path, place: Path) -> None:
    """Put a directory in the place of another one; a directory cannot be renamed onto a full one."""
    old = built.parent / "old"
    if place.exists():
        place.rename(old)
    built.rename(place)
    shutil.rmtree(old, ignore_errors=True)
