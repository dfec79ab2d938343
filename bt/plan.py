"""`plan`: a tactic and a reason for every site of an image; plain data, JSON both ways.

Room: `bt`, the third stage of the house. The plan has everything that rewriting needs, byte for byte, so that a file
can be rewritten, a run can repeat what the file holds, and a reader can see why a site was not given something better.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from bt.knowledge import linux_x86
from bt.pagescan import PAGE, Found
from bt.pristine import Pristine
from bt.scan import Site
from bt.tactics.choose import Choice, Tactic
from bt.tactics.layout import Arena, assemble_fixup, size_of
from bt.tactics.page import Placed, patch_page, survey
from emulator.errors import BadImage, UsageError
from paravirt.abi import ABI_VERSION, FIXUP_BASE, FIXUP_SIZE
from paravirt.translator import Fixup

if TYPE_CHECKING:
    from bt.image import Image
    from bt.pagecache import PageCache

FORMAT: Final = 1
"""Of the JSON; a reader refuses another by name."""
MODES: Final = ("trap", "inline")
REPLACEMENTS: Final = ".altinstr_replacement"
"""Linux's section of code that is copied over other code and never runs where it stands."""


@dataclass(frozen=True, slots=True)
class PlannedSite:
    """What is done at one site."""

    address: int
    """Guest-virtual, as linked."""
    instruction: str
    """Name of its row in the table."""
    behaviour: str
    """What it does in user mode: traps, ignored, leaks, differs."""
    symbol: str
    section: str
    file_offset: int
    old: bytes
    """The bytes that the tactic stands for: the instruction, or the whole window of a fixup."""
    new: bytes
    """As many bytes, patched; equal to `old` where nothing is done."""
    tactic: Tactic
    reason: str
    refused: str
    """Why not a better tactic; "" where there is none."""
    fixup: int
    """Guest-virtual address of its fixup, or 0."""
    doubtful: bool
    """It may be data."""


@dataclass(frozen=True, slots=True)
class PlannedFixup:
    """A fixup's bytes at their address."""

    address: int
    site: int
    code: bytes


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """Bytes outside the sites that knowledge about the kernel changes."""

    address: int
    file_offset: int
    old: bytes
    new: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it."""

    mode: str
    """"trap" or "inline"."""
    sha256: str
    """Of the ELF that it is for, hexadecimal."""
    sites: tuple[PlannedSite, ...]
    """By ascending address."""
    fixups: tuple[PlannedFixup, ...]
    """By ascending address."""
    changes: tuple[PlannedChange, ...]
    end: int
    """First address of the fixup region that the plan does not use."""
    abi: int = ABI_VERSION

    def check(self, image: Image | None, mode: str) -> None:
        """Raise `UsageError` where the plan is not for this image and mode."""
        if mode != self.mode:
            raise UsageError(f"the plan is for mode {self.mode!r}, not {mode!r}; run it in its mode, or plan anew")
        if image is None or elf_digest(image) != self.sha256:
            raise UsageError("the plan is for another image; plan anew")

    def counts(self) -> dict[str, int]:
        """Sites by tactic, in the order of `Tactic`."""
        return {tactic.value: sum(site.tactic is tactic for site in self.sites) for tactic in Tactic}

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {
            "format": FORMAT,
            "abi": self.abi,
            "mode": self.mode,
            "sha256": self.sha256,
            "end": self.end,
            "sites": [_plain(site) for site in self.sites],
            "fixups": [_plain(fixup) for fixup in self.fixups],
            "changes": _grouped(self.changes),
        }

    @classmethod
    def from_json(cls, value: object) -> Plan:
        """The plan of plain values. Raises `BadImage` for values that make none."""
        try:
            assert isinstance(value, dict)
            if value["format"] != FORMAT or value["abi"] != ABI_VERSION:
                raise BadImage(
                    f"the plan has format {value['format']} and ABI {value['abi']}; this retrap reads format {FORMAT} "
                    f"and ABI {ABI_VERSION}: revert and rewrite the image again"
                )
            made = cls(
                mode=_text(value["mode"]),
                sha256=_text(value["sha256"]),
                sites=tuple(_site(row) for row in value["sites"]),
                fixups=tuple(
                    PlannedFixup(_number(r["address"]), _number(r["site"]), bytes.fromhex(r["code"]))
                    for r in value["fixups"]
                ),
                changes=_in_order(change for group in value["changes"] for change in _changes(group)),
                end=_number(value["end"]),
            )
        except (AssertionError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadImage(f"the plan is damaged ({error!r}); revert and rewrite the image again") from None
        made.validate()
        return made

    def validate(self) -> None:
        """Raise `BadImage` where the parts do not fit each other."""
        in_region = FIXUP_BASE <= self.end <= FIXUP_BASE + FIXUP_SIZE
        for fixup in self.fixups:
            in_region &= fixup.address >= FIXUP_BASE and fixup.address + len(fixup.code) <= self.end
        items: list[PlannedSite | PlannedChange] = [*self.sites, *self.changes]
        same = all(len(item.old) == len(item.new) > 0 for item in items)
        if self.mode not in MODES or not in_region or not same:
            raise BadImage("the plan contradicts itself; revert and rewrite the image again")


def elf_digest(image: Image) -> str:
    """SHA-256 of an image's ELF, hexadecimal: what a plan is bound to, whatever the container."""
    import hashlib

    return hashlib.sha256(image.elf).hexdigest()


def plan(image: Image, sites: Sequence[Site], mode: str, cache: PageCache | None = None) -> Plan:
    """Plan an image for `mode`. Raises `UsageError` for an unknown mode."""
    if mode not in MODES:
        raise UsageError(f"there is no mode {mode!r}; take one of {', '.join(MODES)}")
    inline = mode == "inline"
    arena = Arena()
    known = linux_x86.known(image, cache) if inline else linux_x86.Known((), ())
    fixups = list(linux_x86.stubs(known, 0, arena))
    patches = linux_x86.image_patches(known)
    pristine = Pristine(image, 0, patches, cache)
    padded = bool(fixups)
    planned: list[PlannedSite] = []
    pages: dict[int, list[Site]] = {}
    for site in sorted(sites, key=lambda site: site.address):
        if site.section == REPLACEMENTS:
            planned.append(_left(site))
        else:
            pages.setdefault(site.address & -PAGE, []).append(site)
    for address, here in pages.items():
        planned += _plan_page(pristine, address, here, inline, padded, arena, fixups)
    return Plan(
        mode=mode,
        sha256=elf_digest(image),
        sites=tuple(sorted(planned, key=lambda site: site.address)),
        fixups=tuple(PlannedFixup(fixup.address, fixup.site, fixup.code) for fixup in fixups),
        changes=_kernel_changes(image, patches),
        end=arena.next,
    )


def _plan_page(
    pristine: Pristine,
    address: int,
    sites: list[Site],
    inline: bool,
    padded: bool,
    arena: Arena,
    fixups: list[Fixup],
) -> list[PlannedSite]:
    """The sites of one page, with their fixups appended to `fixups`."""
    whole, scan = pristine.contents(address), pristine.scan(address)
    assert scan is not None
    whole = whole.ljust(PAGE, b"\0")
    code = whole[:PAGE]

    def place(choice: Choice) -> int | None:
        assert choice.window is not None
        at = arena.take(size_of(choice.window))
        if at is not None:
            fixups.append(assemble_fixup(at, address, choice.window))
        return at

    ground = survey(address, whole, scan, pristine.page(address), -1, padded) if inline else None
    found = [Found(site.address - address, site.length, site.code) for site in sites]
    patched = patch_page(address, code, found, inline, ground, place)
    return [_planned(site, placed, whole, patched.code) for site, placed in zip(sites, patched.placed, strict=True)]


def _planned(site: Site, placed: Placed, whole: bytes, patched: bytes) -> PlannedSite:
    choice = placed.choice
    at = choice.site.offset
    old = whole[at : at + len(choice)]
    covered = choice.tactic is Tactic.COVERED
    new = old if covered else patched[at : at + len(choice)] + old[len(patched[at : at + len(choice)]) :]
    return PlannedSite(
        address=site.address,
        instruction=site.row.name,
        behaviour=site.row.at_user_level.value,
        symbol=site.symbol,
        section=site.section,
        file_offset=site.file_offset,
        old=old,
        new=new,
        tactic=choice.tactic,
        reason=choice.reason,
        refused=choice.refused,
        fixup=placed.fixup or 0,
        doubtful=site.doubtful,
    )


def _left(site: Site) -> PlannedSite:
    """A site in code that the kernel copies elsewhere."""
    return PlannedSite(
        address=site.address,
        instruction=site.row.name,
        behaviour=site.row.at_user_level.value,
        symbol=site.symbol,
        section=site.section,
        file_offset=site.file_offset,
        old=site.bytes,
        new=site.bytes,
        tactic=Tactic.LEAVE,
        reason="the kernel copies it over other code, and it is patched there when that runs",
        refused="",
        fixup=0,
        doubtful=site.doubtful,
    )


def _kernel_changes(image: Image, patches: list[linux_x86.ImagePatch]) -> tuple[PlannedChange, ...]:
    changes = []
    for patch in patches:
        segment = image.segment_at(patch.address)
        if segment is not None:
            offset = segment.file_offset + patch.address - segment.vaddr
            changes.append(PlannedChange(patch.address, offset, patch.old, patch.new, patch.reason))
    return _in_order(changes)


def _in_order(changes: Iterable[PlannedChange]) -> tuple[PlannedChange, ...]:
    return tuple(sorted(changes, key=lambda change: change.address))


def _plain(item: PlannedSite | PlannedFixup) -> dict[str, Any]:
    """Fields by name, bytes in hexadecimal, tactics by value; addresses stay numbers."""
    row = asdict(item)
    for field in fields(item):
        value = row[field.name]
        if isinstance(value, bytes):
            row[field.name] = value.hex()
        elif isinstance(value, Tactic):
            row[field.name] = value.value
    return row


def _grouped(changes: tuple[PlannedChange, ...]) -> list[dict[str, Any]]:
    """Changes that differ in their place only, together: there are thousands."""
    groups: dict[tuple[str, bytes, bytes], list[PlannedChange]] = {}
    for change in changes:
        groups.setdefault((change.reason, change.old, change.new), []).append(change)
    return [
        {
            "reason": reason,
            "old": old.hex(),
            "new": new.hex(),
            "addresses": [change.address for change in group],
            "file_offsets": [change.file_offset for change in group],
        }
        for (reason, old, new), group in groups.items()
    ]


def _changes(group: dict[str, Any]) -> list[PlannedChange]:
    old, new, reason = bytes.fromhex(group["old"]), bytes.fromhex(group["new"]), _text(group["reason"])
    places = zip(group["addresses"], group["file_offsets"], strict=True)
    return [PlannedChange(_number(address), _number(offset), old, new, reason) for address, offset in places]


def _site(row: dict[str, Any]) -> PlannedSite:
    return PlannedSite(
        address=_number(row["address"]),
        instruction=_text(row["instruction"]),
        behaviour=_text(row["behaviour"]),
        symbol=_text(row["symbol"]),
        section=_text(row["section"]),
        file_offset=_number(row["file_offset"]),
        old=bytes.fromhex(row["old"]),
        new=bytes.fromhex(row["new"]),
        tactic=Tactic(row["tactic"]),
        reason=_text(row["reason"]),
        refused=_text(row["refused"]),
        fixup=_number(row["fixup"]),
        doubtful=bool(row["doubtful"]),
    )


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise ValueError(f"{value!r} is no address")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def read_plan(text: str) -> Plan:
    """A plan from JSON text. Raises `BadImage`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadImage(f"the plan is no JSON ({error}); give the file that `retrap rewrite --manifest` wrote") from None
    return Plan.from_json(value)
