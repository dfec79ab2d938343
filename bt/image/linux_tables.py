"""`LinuxTables`: where an x86 Linux kernel patches its own text, and how it recovers from faults.

Room: `bt/image`. Layouts from Linux 6.1: arch/x86/include/asm/{alternative,paravirt_types,jump_label,extable}.h and
include/linux/{jump_label,static_call_types}.h. A table is found by its section, else between the linker script's
boundary symbols. Optional knowledge: an absent table is empty, and nobody's correctness may rest on one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from bt.image.elf import SHT_NOBITS
from emulator.errors import BadImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image.image import Image

    Addresses = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Place:
    """How a table is found."""

    section: str
    """Its section, where it has one of its own; "" otherwise."""
    start: str
    """Symbol at its first entry."""
    end: str
    """Symbol behind its last entry."""


PLACES: dict[str, Place] = {
    "alternatives": Place(".altinstructions", "__alt_instructions", "__alt_instructions_end"),
    "paravirt": Place(".parainstructions", "__parainstructions", "__parainstructions_end"),
    "smp_locks": Place(".smp_locks", "__smp_locks", "__smp_locks_end"),
    "jump_labels": Place("__jump_table", "__start___jump_table", "__stop___jump_table"),
    "retpolines": Place(".retpoline_sites", "__retpoline_sites", "__retpoline_sites_end"),
    "returns": Place(".return_sites", "__return_sites", "__return_sites_end"),
    "exceptions": Place("__ex_table", "__start___ex_table", "__stop___ex_table"),
    "static_calls": Place(".static_call_sites", "__start_static_call_sites", "__stop_static_call_sites"),
    "mcount": Place("__mcount_loc", "__start_mcount_loc", "__stop_mcount_loc"),
}
"""Every table by its field in `LinuxTables`."""


@dataclass(frozen=True, slots=True, eq=False)
class Alternatives:
    """.altinstructions: instructions replaced at boot when the CPU has (or lacks) a feature."""

    sites: Addresses
    lengths: NDArray[np.uint8]
    """Bytes at the site, padding included."""
    replacements: Addresses
    replacement_lengths: NDArray[np.uint8]
    features: NDArray[np.uint16]
    """X86_FEATURE_* number: word * 32 + bit."""
    inverted: NDArray[np.bool_]
    """The replacement is made when the feature is absent."""

    def __len__(self) -> int:
        return len(self.sites)


@dataclass(frozen=True, slots=True, eq=False)
class ParavirtSites:
    """.parainstructions: indirect calls through pv_ops, patched at boot."""

    sites: Addresses
    lengths: NDArray[np.uint8]
    """Bytes at the site."""
    types: NDArray[np.uint8]
    """Which operation: index of the 8-byte slot in pv_ops."""

    def __len__(self) -> int:
        return len(self.sites)


@dataclass(frozen=True, slots=True, eq=False)
class JumpLabels:
    """__jump_table: branches switched at run time between a jump and a no-operation."""

    sites: Addresses
    targets: Addresses
    keys: Addresses
    """The static_key's address."""
    flags: NDArray[np.uint8]
    """Bit 0: the branch is likely; bit 1: the site is in .init.text."""

    def __len__(self) -> int:
        return len(self.sites)


@dataclass(frozen=True, slots=True, eq=False)
class Exceptions:
    """__ex_table: where a faulting instruction of the kernel continues."""

    instructions: Addresses
    fixups: Addresses
    types: NDArray[np.uint32]
    """EX_TYPE_* in the low byte, register and flags above."""

    def __len__(self) -> int:
        return len(self.instructions)


@dataclass(frozen=True, slots=True, eq=False)
class StaticCalls:
    """.static_call_sites: direct calls whose target is switched at run time."""

    sites: Addresses
    keys: Addresses
    flags: NDArray[np.uint8]
    """Bit 0: a tail call; bit 1: the site is in .init.text."""

    def __len__(self) -> int:
        return len(self.sites)


@dataclass(frozen=True, slots=True, eq=False)
class LinuxTables:
    """The kernel's patch tables, all addresses guest-virtual, in the tables' own order."""

    alternatives: Alternatives
    paravirt: ParavirtSites
    smp_locks: Addresses
    """LOCK prefixes, replaced on a machine with one CPU."""
    jump_labels: JumpLabels
    retpolines: Addresses
    """Jumps and calls to __x86_indirect_thunk_*."""
    returns: Addresses
    """Jumps to __x86_return_thunk."""
    exceptions: Exceptions
    static_calls: StaticCalls
    mcount: Addresses
    """Calls to __fentry__, five bytes each, no-operations while not traced."""
    version: str
    """Release as in `uname -r`; "" where the banner is not found."""

    def counts(self) -> dict[str, int]:
        """Entries of each table, by field."""
        return {name: len(getattr(self, name)) for name in PLACES}

    def leads(self) -> list[Addresses]:
        """Places to which the kernel may go on by a table, without a branch that says so."""
        return [self.exceptions.fixups, self.jump_labels.targets]

    def places(self) -> list[Addresses]:
        """Places that the kernel looks at or patches itself."""
        return [
            self.alternatives.sites,
            self.paravirt.sites,
            self.smp_locks,
            self.jump_labels.sites,
            self.retpolines,
            self.returns,
            self.static_calls.sites,
            self.mcount,
        ]


def read(image: Image) -> LinuxTables | None:
    """The tables of a Linux kernel, or None for another. Raises `BadImage` for a damaged table."""
    if image.section(".altinstructions") is None and image.symbols.address_of("linux_banner") is None:
        return None
    return LinuxTables(
        alternatives=_alternatives(image),
        paravirt=_paravirt(image),
        smp_locks=_relative(image, "smp_locks"),
        jump_labels=_jump_labels(image),
        retpolines=_relative(image, "retpolines"),
        returns=_relative(image, "returns"),
        exceptions=_exceptions(image),
        static_calls=_static_calls(image),
        mcount=_mcount(image),
        version=_version(image),
    )


def of(image: Image) -> LinuxTables | None:
    """The tables of an x86 Linux kernel, kept by the image; None for another."""
    tables = image.linux
    return tables if isinstance(tables, LinuxTables) else None


def _pointer(image: Image) -> tuple[str, str]:
    """A word and a signed word of this kernel, as numpy has them."""
    size = image.isa.bits // 8
    return f"<u{size}", f"<i{size}"


def _bytes(image: Image, name: str) -> tuple[int, memoryview]:
    """Address and contents of a table, empty where there is none."""
    place = PLACES[name]
    section = image.section(place.section)
    if section is not None and section.type != SHT_NOBITS:
        return section.vaddr, section.data
    start, end = image.symbols.address_of(place.start), image.symbols.address_of(place.end)
    if start is None or end is None or end <= start:
        return 0, memoryview(b"")
    return start, image.view(start, end - start)


def _rows(image: Image, name: str, fields: list[tuple[str, str]]) -> tuple[int, NDArray[np.void]]:
    """Address and entries of a table as a structured array."""
    address, data = _bytes(image, name)
    kind = np.dtype(fields)
    if len(data) % kind.itemsize:
        _bad(image, name, f"has {len(data)} bytes in entries of {kind.itemsize}")
    return address, np.frombuffer(data, kind)


def _resolve(address: int, rows: NDArray[np.void], field: str) -> Addresses:
    """Addresses from distances that each count from the field that holds them."""
    kind = rows.dtype
    assert kind.fields is not None
    at = np.arange(len(rows), dtype=np.uint64) * np.uint64(kind.itemsize) + np.uint64(
        (address + kind.fields[field][1]) % (1 << 64),
    )
    resolved: Addresses = at + rows[field].astype(np.int64).view(np.uint64)
    return resolved


def _relative(image: Image, name: str) -> Addresses:
    address, rows = _rows(image, name, [("site", "<i4")])
    # .smp_locks is filled with zeros to a page's end, its boundary symbol included.
    used = np.flatnonzero(rows["site"])
    rows = rows[: int(used[-1]) + 1 if len(used) else 0]
    return _in_text(image, name, _resolve(address, rows, "site"))


_ALTERNATIVES: tuple[list[tuple[str, str]], ...] = (
    [("site", "<i4"), ("new", "<i4"), ("feature", "<u2"), ("length", "u1"), ("new_length", "u1")],
    [("site", "<i4"), ("new", "<i4"), ("feature", "<u2"), ("flags", "<u2"), ("length", "u1"), ("new_length", "u1")],
    [("site", "<i4"), ("new", "<i4"), ("feature", "<u2"), ("length", "u1"), ("new_length", "u1"), ("padding", "u1")],
)
"""struct alt_instr since Linux 5.13, since 6.3, and before 5.13: the sizes tell them apart only with the contents."""


def _alternatives(image: Image) -> Alternatives:
    data = _bytes(image, "alternatives")[1]
    for layout in _ALTERNATIVES:
        if len(data) % np.dtype(layout).itemsize:
            continue
        address, rows = _rows(image, "alternatives", layout)
        sites, replacements = _resolve(address, rows, "site"), _resolve(address, rows, "new")
        if not _inside_text(image, sites).all() or not _inside_text(image, replacements[rows["new_length"] > 0]).all():
            continue
        split = "flags" in (rows.dtype.names or ())
        return Alternatives(
            sites=sites,
            lengths=rows["length"].copy(),
            replacements=replacements,
            replacement_lengths=rows["new_length"].copy(),
            features=rows["feature"].copy() if split else rows["feature"] & np.uint16(0x7FFF),
            inverted=(rows["flags"] & 1 if split else rows["feature"] >> 15).astype(bool),
        )
    return _bad(image, "alternatives", f"has {len(data)} bytes that fit no known layout")


def _paravirt(image: Image) -> ParavirtSites:
    word, _ = _pointer(image)
    filler = [("_1", "<u2"), ("_2", "<u4")] if image.isa.bits == 64 else [("_1", "<u2")]
    _, rows = _rows(image, "paravirt", [("site", word), ("type", "u1"), ("length", "u1"), *filler])
    sites = _in_text(image, "paravirt", rows["site"].astype(np.uint64))
    return ParavirtSites(sites, rows["length"].copy(), rows["type"].copy())


def _jump_labels(image: Image) -> JumpLabels:
    address, rows = _rows(image, "jump_labels", [("site", "<i4"), ("target", "<i4"), ("key", _pointer(image)[1])])
    keys = _resolve(address, rows, "key")
    return JumpLabels(
        sites=_in_text(image, "jump_labels", _resolve(address, rows, "site")),
        targets=_in_text(image, "jump_labels", _resolve(address, rows, "target")),
        keys=keys & ~np.uint64(3),
        flags=(keys & np.uint64(3)).astype(np.uint8),
    )


def _exceptions(image: Image) -> Exceptions:
    address, rows = _rows(image, "exceptions", [("site", "<i4"), ("fixup", "<i4"), ("type", "<u4")])
    return Exceptions(
        instructions=_in_text(image, "exceptions", _resolve(address, rows, "site")),
        fixups=_in_text(image, "exceptions", _resolve(address, rows, "fixup")),
        types=rows["type"].copy(),
    )


def _static_calls(image: Image) -> StaticCalls:
    address, rows = _rows(image, "static_calls", [("site", "<i4"), ("key", "<i4")])
    keys = _resolve(address, rows, "key")
    return StaticCalls(
        sites=_in_text(image, "static_calls", _resolve(address, rows, "site")),
        keys=keys & ~np.uint64(3),
        flags=(keys & np.uint64(3)).astype(np.uint8),
    )


def _mcount(image: Image) -> Addresses:
    _, rows = _rows(image, "mcount", [("site", _pointer(image)[0])])
    return _in_text(image, "mcount", rows["site"].astype(np.uint64))


def _version(image: Image) -> str:
    banner = image.symbols.address_of("linux_banner")
    segment = image.segment_at(banner) if banner is not None else None
    if banner is None or segment is None:
        return ""
    at = banner - segment.vaddr
    words = bytes(segment.data[at : at + 256]).split(b"\0", 1)[0].decode("utf-8", "replace").split(" ")
    return words[2] if words[:2] == ["Linux", "version"] and len(words) > 2 else ""


def _inside_text(image: Image, addresses: Addresses) -> NDArray[np.bool_]:
    inside = np.zeros(len(addresses), bool)
    for start, end in image.text_ranges:
        inside |= (addresses >= np.uint64(start)) & (addresses <= np.uint64(end - 1))
    return inside


def _in_text(image: Image, name: str, addresses: Addresses) -> Addresses:
    """Refuse a table that names a place which is not executable."""
    inside = _inside_text(image, addresses)
    if not inside.all():
        _bad(image, name, f"names {int(addresses[~inside][0]):#x}, which is no executable address of the kernel")
    return addresses


def _bad(image: Image, name: str, what: str) -> NoReturn:
    place = PLACES[name]
    raise BadImage(f"{image.path}: its table {place.section} {what}; it is damaged: fetch or build it again")
