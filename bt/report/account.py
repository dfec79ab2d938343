"""`Account`: what was done to an image, as plain values that every format of report prints.

Room: `bt/report`, its front door. The only place where reports read a plan or an image: text, JSON, SARIF, HTML,
exports and comparisons see an `Account` and nothing else. Names of places come with it, machine code stays bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from bt.disassembly import Line, disassemble
from emulator.isa.isas import ISAS

if TYPE_CHECKING:
    from bt.image import Image
    from bt.plan import Plan, PlannedSite
    from bt.scan import Site
    from emulator.isa.sensitive import SensitiveInstruction

FIXUPS: Final = ".retrap.fixups"
"""Section of a rewritten image that holds the fixups."""
EXECUTABLE: Final = 4
"""SHF_EXECINSTR."""


@dataclass(frozen=True, slots=True)
class SectionAccount:
    """A section that is in memory; where the image has none, a segment."""

    name: str
    address: int
    """Guest-virtual."""
    size: int
    """Bytes in memory."""
    file_offset: int
    executable: bool


@dataclass(frozen=True, slots=True)
class SiteAccount:
    """One sensitive instruction and what was done about it."""

    address: int
    """Guest-virtual, as linked."""
    file_offset: int
    """Of the instruction, in the uncompressed image."""
    section: str
    symbol: str
    """`symbol+0x12`, or the address where no symbol is known."""
    source: str
    """`file:line` by the image's debug data; "" where it has none."""
    instruction: str
    """Name of its row in the table of sensitive instructions."""
    operation: str
    """What that stands for, by field name."""
    behaviour: str
    """Its class, what it does in user mode: traps, ignored, leaks, differs."""
    confidence: str
    """How sure it is that this is code: certain, likely, data?."""
    confidence_reason: str
    tactic: str
    """"" where the image was only scanned."""
    placing: str
    """How its fixup is reached; "" where there is none."""
    without_trap: bool
    """Whether it does its work without a fault, planted or its own."""
    reason: str
    """Why this tactic."""
    refused: str
    """Why none of the better ones; "" where there is none."""
    start: int
    """Guest-virtual address of `old`: the site's, or before it where its tactic takes in what comes before."""
    old: bytes
    """What the tactic stands for: the instruction, or all that its fixup replaces."""
    new: bytes
    """As many bytes, patched; equal to `old` where nothing was done."""
    fixup: int | None
    """Guest-virtual address of its fixup."""
    state: str = ""
    """Instruction-set state ("t32"), where the ISA has several."""
    home: int | None = None
    """Where the kernel copies it to before it runs; None where it runs where it stands."""

    @property
    def patch_offset(self) -> int:
        """Of `old`, in the uncompressed image."""
        return self.file_offset - (self.address - self.start)

    @property
    def patched(self) -> bool:
        """Whether its bytes were changed."""
        return self.old != self.new

    @property
    def function(self) -> str:
        """The symbol without the distance from it."""
        return self.symbol.partition("+")[0]


@dataclass(frozen=True, slots=True)
class FixupAccount:
    """Code that does the work of a site."""

    address: int
    """Guest-virtual, in the hypervisor's window."""
    site: int
    code: bytes
    clobbers: tuple[str, ...]
    """What it uses up beyond what its instructions change."""
    file_offset: int | None = None
    """Of its code in the rewritten file, where that is known."""


@dataclass(frozen=True, slots=True)
class ChangeAccount:
    """Places outside the sites that were changed alike."""

    reason: str
    old: bytes
    new: bytes
    addresses: tuple[int, ...]


@dataclass(frozen=True)
class Account:
    """All of it. Everything ascends by address."""

    path: str
    """Where it was read, as the user wrote it."""
    sha256: str
    """Of the original, uncompressed image, hexadecimal."""
    isa: str
    """Name in `ISAS`."""
    order: str
    """Byte order, "little" or "big"."""
    mode: str
    """How it was planned; "" where it was only scanned."""
    size: int | None
    """Bytes of the original ELF with what is appended to it, where that is known."""
    rewritten_size: int | None
    """Bytes of the rewritten file, where that is known."""
    sections: tuple[SectionAccount, ...]
    sites: tuple[SiteAccount, ...]
    fixups: tuple[FixupAccount, ...]
    changes: tuple[ChangeAccount, ...]
    """In the order of the plan."""

    @cached_property
    def fixup_of(self) -> dict[int, FixupAccount]:
        """Fixups by address."""
        return {fixup.address: fixup for fixup in self.fixups}

    @cached_property
    def rows(self) -> dict[str, SensitiveInstruction]:
        """The table of sensitive instructions by name."""
        return {row.name: row for row in ISAS[self.isa].rows}

    @property
    def width(self) -> int:
        """Hexadecimal digits of an address."""
        return ISAS[self.isa].bits // 4

    def count(self, field: str) -> dict[str, int]:
        """Sites by the value of a field, the most frequent first."""
        counts = Counter(str(getattr(site, field)) for site in self.sites)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def without_trap(self, section: str | None = None) -> tuple[int, int]:
        """How many sites (of a section) do their work without a fault, and how many there are."""
        sites = [site for site in self.sites if section is None or site.section == section]
        return sum(site.without_trap for site in sites), len(sites)

    def lines(self, code: bytes, address: int, most: int | None = None, state: str = "") -> tuple[Line, ...]:
        """Disassembly of code of this image."""
        return disassemble(code, address, most, isa=self.isa, order=self.order, state=state)

    def old_lines(self, site: SiteAccount) -> tuple[Line, ...]:
        """What stood at a site."""
        return self.lines(site.old, site.start, state=site.state)

    def new_lines(self, site: SiteAccount) -> tuple[Line, ...]:
        """What stands there now; what is behind a jump or a trap, and never reached, is left out."""
        if not site.patched:
            return ()
        if site.tactic == "replaced":
            return self.lines(site.new, site.start, state=site.state)
        return self.lines(site.new, site.start, 1, state=site.state)

    def fixup_lines(self, fixup: FixupAccount, state: str = "") -> tuple[Line, ...]:
        """The code of a fixup."""
        return self.lines(fixup.code, fixup.address, state=state)


def account(
    plan: Plan,
    path: str,
    image: Image | None = None,
    size: int | None = None,
    rewritten_size: int | None = None,
    rewritten: Image | None = None,
) -> Account:
    """The account of a plan; with `image` (the original, or the rewritten one) sections and source lines are known.

    `path` is what the report is called by; the sizes are those of the ELF before and after, in bytes. `rewritten` is
    the rewritten one, where `image` is not: in it fixups have their places.
    """
    places = _fixup_places(rewritten or image)
    return Account(
        path=path,
        sha256=plan.sha256,
        isa=plan.isa,
        order=plan.byte_order,
        mode=plan.mode,
        size=size,
        rewritten_size=rewritten_size,
        sections=_sections(image) if image is not None else _bounds(plan.sites),
        sites=tuple(_site(site, _source(image, site.address)) for site in plan.sites),
        fixups=tuple(
            FixupAccount(f.address, f.site, f.code, f.clobbers, _offset_of(f.address, len(f.code), places))
            for f in plan.fixups
        ),
        changes=_changes(plan),
    )


def _fixup_places(image: Image | None) -> list[tuple[int, int, int]]:
    """Address, address behind it and file offset of every section of fixups, by address."""
    sections = image.sections if image is not None else ()
    return sorted((s.vaddr, s.vaddr + s.size, s.file_offset) for s in sections if s.name == FIXUPS)


def _offset_of(address: int, size: int, places: list[tuple[int, int, int]]) -> int | None:
    """File offset of the code at an address; None where no section holds all of it."""
    number = bisect_right(places, (address, 1 << 64, 0)) - 1
    if number < 0 or address + size > places[number][1]:
        return None
    return places[number][2] + address - places[number][0]


def scanned(image: Image, sites: Iterable[Site]) -> Account:
    """The account of an image that nothing was done to: its sites, without a tactic."""
    from bt.plan import elf_digest

    return Account(
        path=image.path,
        sha256=elf_digest(image),
        isa=image.isa.name,
        order=image.byte_order,
        mode="",
        size=len(image.elf) + len(image.appended),
        rewritten_size=None,
        sections=_sections(image),
        sites=tuple(_scanned_site(site, _source(image, site.address)) for site in sites),
        fixups=(),
        changes=(),
    )


def _source(image: Image | None, address: int) -> str:
    return image.source_line(address) if image is not None else ""


def _site(site: PlannedSite, source: str) -> SiteAccount:
    return SiteAccount(
        address=site.address,
        file_offset=site.file_offset,
        section=site.section,
        symbol=site.symbol,
        source=source,
        instruction=site.instruction,
        operation=site.operation,
        behaviour=site.behaviour,
        confidence=site.confidence.value,
        confidence_reason=site.confidence_reason,
        tactic=site.tactic.value,
        placing=site.placing.value,
        without_trap=site.without_trap,
        reason=site.reason,
        refused=site.refused,
        start=site.start,
        old=site.old,
        new=site.new,
        fixup=site.fixup or None,
        state=site.state,
        home=site.home or None,
    )


def _scanned_site(site: Site, source: str) -> SiteAccount:
    return SiteAccount(
        address=site.address,
        file_offset=site.file_offset,
        section=site.section,
        symbol=site.symbol,
        source=source,
        instruction=site.row.name,
        operation=site.row.operation.name,
        behaviour=site.row.at_user_level.value,
        confidence=site.confidence.value,
        confidence_reason=site.reason,
        tactic="",
        placing="",
        without_trap=False,
        reason="",
        refused="",
        start=site.address,
        old=site.bytes,
        new=site.bytes,
        fixup=None,
        state=site.state,
    )


def _sections(image: Image) -> tuple[SectionAccount, ...]:
    """What lies in memory, by address; what retrap itself added is left out."""
    allocated = [s for s in image.sections if s.flags & 2 and s.size and s.vaddr]
    found = [SectionAccount(s.name, s.vaddr, s.size, s.file_offset, bool(s.flags & EXECUTABLE)) for s in allocated]
    if not found:
        found = [
            SectionAccount(f"segment {number}", s.vaddr, s.memory_size, s.file_offset, s.executable)
            for number, s in enumerate(image.segments)
        ]
    return tuple(sorted(found, key=lambda section: section.address))


def _bounds(sites: Iterable[PlannedSite]) -> tuple[SectionAccount, ...]:
    """Of sections that only their sites are known of: the range that those span."""
    first: dict[str, PlannedSite] = {}
    last: dict[str, PlannedSite] = {}
    for site in sites:
        first.setdefault(site.section, site)
        last[site.section] = site
    return tuple(
        SectionAccount(
            name, site.address, last[name].address + len(last[name].old) - site.address, site.file_offset, True
        )
        for name, site in sorted(first.items(), key=lambda item: item[1].address)
    )


def _changes(plan: Plan) -> tuple[ChangeAccount, ...]:
    groups: dict[tuple[str, bytes, bytes], list[int]] = {}
    for change in plan.changes:
        groups.setdefault((change.reason, change.old, change.new), []).append(change.address)
    return tuple(ChangeAccount(reason, old, new, tuple(places)) for (reason, old, new), places in groups.items())
