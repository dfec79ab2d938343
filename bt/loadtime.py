"""Run-time rewriting: the `Translator` that the hypervisor asks for every page of kernel code it is about to execute.

Room: `bt`; fulfils `paravirt.translator.Translator`. It remembers what it has seen: one result an address, content and
entry, fixups one a site, findings on disk by content. It never touches guest memory and never asks what a page means.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt import assemble as asm
from bt.knowledge import linux_x86
from bt.pagecache import KEY_SIZE
from bt.pagescan import LONGEST, PAGE, Found, PageScan, decode, rescan_page, scan_page, with_entry
from bt.pristine import Pristine
from bt.tactics.choose import Choice, Tactic
from bt.tactics.layout import Arena, assemble_fixup, size_of
from bt.tactics.page import PatchedPage, patch_page, survey
from emulator.errors import UsageError
from emulator.isa.x86.table import PLANTED
from paravirt.translator import Fixup, Translation

if TYPE_CHECKING:
    from bt.image import Image
    from bt.knowledge.linux_x86 import ImagePatch
    from bt.pagecache import PageCache
    from bt.plan import Plan, PlannedSite
    from bt.textmap import PristinePage

MODES: Final = ("trap", "inline")
UNKNOWN_KEPT: Final = 1024
"""Pages without an image that one run keeps on disk: a guest may make code of data without end."""
REMEMBERED: Final = 8192
"""Translations kept in memory; of more, the oldest is forgotten."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A remembered translation."""

    translation: Translation
    """Without fixups: the hypervisor has them."""
    enterable: int
    """Mask of offsets at which it may be entered."""


class LoadTimeTranslator:
    """Translates pages of guest kernel code; see `paravirt.translator.Translator.translate`.

    `image` gives the pristine boundaries, for a guest whose code lies `delta` bytes above where it is linked.
    In inline mode the loader applies `image_patches` to the guest's memory before the guest runs. A `plan` (of a
    rewritten file) fixes where the fixups of unchanged sites lie, and which sites have none.
    Raises `UsageError` for an unknown mode, and for a plan of another image or mode.
    """

    def __init__(
        self,
        mode: str,
        image: Image | None = None,
        delta: int = 0,
        cache: PageCache | None = None,
        plan: Plan | None = None,
    ) -> None:
        if mode not in MODES:
            raise UsageError(f"there is no translator mode {mode!r}; take one of {', '.join(MODES)}")
        began = time.perf_counter()
        self.mode = mode
        self.scanned = 0
        """Pages decoded, wholly or in part; the image's sweep counts as one where it was not cached."""
        self.cached = 0
        """Pages whose findings came from the pristine image, from memory or from disk."""
        self.image_patches: list[ImagePatch] = []
        """What the loader must change in the loaded image."""
        self._unknown = 0
        self._inline = mode == "inline"
        self._cache = cache
        self._arena = Arena()
        self._pristine: Pristine | None = None
        self._padded = False
        self._waiting: tuple[Fixup, ...] = ()
        self._fixups: dict[tuple[int, bytes], int | None] = {}
        self._planned: dict[int, PlannedSite] = {}
        self._reserved: dict[int, int] = {}
        self._known: dict[tuple[int, bytes, int], _Known] = {}
        self._last: dict[int, tuple[bytes, PageScan]] = {}
        if image is not None:
            if self._inline:
                known = linux_x86.known(image, cache)
                self._waiting = linux_x86.stubs(known, delta, self._arena)
                self._padded = bool(self._waiting)
                self.image_patches = linux_x86.image_patches(known, delta)
            self._pristine = Pristine(image, delta, self.image_patches, cache)
            self.scanned += not self._pristine.map.cached
        if plan is not None:
            plan.check(image, mode)
            self._planned = {site.address: site for site in plan.sites}
            self._reserved = {fixup.address: len(fixup.code) for fixup in plan.fixups}
            self._arena.next = max(self._arena.next, plan.end)
        self.seconds = time.perf_counter() - began
        """Host seconds spent here, the image's sweep included."""

    def translate(self, address: int, code: bytes, before: bytes, after: bytes, entry: int) -> Translation:
        """Translate the page at guest-virtual `address`; see the protocol. Raises ValueError for a wrong size."""
        if len(code) != PAGE or address % PAGE or not 0 <= entry - address < PAGE:
            raise ValueError(f"a page of {len(code)} bytes at {address:#x} entered at {entry:#x} cannot be translated")
        began = time.perf_counter()
        try:
            whole = bytes(code) + bytes(after[:LONGEST])
            return self._translate(address, whole, bytes(before[-LONGEST:]), entry - address)
        finally:
            self.seconds += time.perf_counter() - began

    def close(self) -> None:
        """Write the cache. Idempotent."""
        if self._cache is not None:
            self._cache.flush()

    def _translate(self, address: int, whole: bytes, before: bytes, entry: int) -> Translation:
        """`whole` is the page with what follows it, `entry` an offset."""
        content = hashlib.blake2b(whole, digest_size=KEY_SIZE).digest()
        for key in ((address, content, -1), (address, content, entry)):
            known = self._known.get(key)
            if known is not None and known.enterable >> entry & 1:
                self.cached += 1
                return known.translation
        linked = self._pristine.linked(address) if self._pristine else None
        page = self._pristine.page(linked) if self._pristine and linked is not None else None
        scan = self._scan(address, whole, before, entry, page, linked or 0)
        self._last[address] = (whole, scan)
        natural = bool(scan.boundaries >> entry & 1)
        if not natural:
            scan = with_entry(scan, whole[:PAGE], whole[PAGE:], entry)
        fresh = list(self._waiting)
        self._waiting = ()
        patched = self._rewrite(address, whole, scan, page, -1, fresh)
        special = not natural or bool(patched.inside >> entry & 1)
        if patched.inside >> entry & 1:
            patched = self._rewrite(address, whole, scan, page, entry, fresh)
        kept = _Known(Translation(patched.code, (), len(scan.sites)), scan.boundaries & ~patched.inside)
        self._known[address, content, entry if special else -1] = kept
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return Translation(patched.code, tuple(fresh), len(scan.sites))

    def _scan(
        self, address: int, whole: bytes, before: bytes, entry: int, page: PristinePage | None, linked: int
    ) -> PageScan:
        """Boundaries and sites of a page: the image's, the cache's, from what changed since last time, or decoded."""
        boundaries = page.boundaries if page else 0
        last = self._last.get(address)
        if page is not None and self._pristine is not None:
            pristine = self._pristine.scan(linked)
            contents = self._pristine.contents(linked)[: len(whole)]
            if pristine is not None and contents == whole:
                self.cached += 1
                return pristine
            if last is None and pristine is not None:
                last = contents, pristine
        if page is None and last is not None:
            # No image speaks for the page, but it was entered before: what did not change keeps its boundaries.
            scan = rescan_page(last[0], last[1], whole)
            if scan.boundaries >> entry & 1:
                self.scanned += 1
                return scan
        if page is not None and page.start < PAGE:
            return self._scan_from(page.start, whole, boundaries, last)
        if last is not None:  # most often an unknown page still begins where it did
            scan = self._scan_from(last[1].start, whole, boundaries, last)
            if scan.boundaries >> entry & 1:
                return scan
        return self._scan_from(self._start(address, whole, before, entry), whole, boundaries, last)

    def _scan_from(self, start: int, whole: bytes, boundaries: int, last: tuple[bytes, PageScan] | None) -> PageScan:
        """The scan of a page from offset `start`; `last` is what is known of the page as it was."""
        key = _key(whole, start, boundaries)
        kept = self._cache.get(key) if self._cache is not None else None
        if kept is not None:
            self.cached += 1
            return kept
        self.scanned += 1
        if last is not None and last[1].start == start:
            scan = rescan_page(last[0], last[1], whole, boundaries)
        else:
            scan = scan_page(whole[:PAGE], whole[PAGE:], start, boundaries)
        if self._cache is not None and (boundaries or self._unknown < UNKNOWN_KEPT):
            self._unknown += not boundaries
            self._cache.put(key, scan)
        return scan

    def _start(self, address: int, whole: bytes, before: bytes, entry: int) -> int:
        """Offset of the first whole instruction of a page that no image knows.

        The page before knows, if it was translated; else what decoding the bytes `before` it says most often, from
        which linear decoding meets `entry`; else `entry`.
        """
        last = self._last.get(address - PAGE)
        head = whole[: entry + LONGEST].ljust(PAGE, b"\xcc")[:PAGE]
        for start in ([last[1].overflow] if last is not None else []) + _likely_starts(before, whole):
            if start <= entry and scan_page(head, b"", start).boundaries >> entry & 1:
                return start
        return entry

    def _rewrite(
        self, address: int, whole: bytes, scan: PageScan, page: PristinePage | None, entry: int, fresh: list[Fixup]
    ) -> PatchedPage:
        """The translated page; new fixups are appended to `fresh`."""
        code = whole[:PAGE]
        ground = survey(address, whole, scan, page, entry, self._padded) if self._inline else None
        linked = self._pristine.linked(address) if self._pristine is not None else None

        def fixed(site: Found) -> bool:
            planned = self._planned.get((linked or 0) + site.offset)
            window = code[site.offset : site.offset + len(planned.old)] if planned is not None else b""
            if planned is None or window != planned.old:
                return False
            return planned.tactic is Tactic.TRAP or (planned.tactic is Tactic.NATIVE and site.code not in PLANTED)

        def place(choice: Choice) -> int | None:
            planned = self._planned.get((linked or 0) + choice.site.offset)
            reserved = planned.fixup if planned is not None and len(planned.old) == len(choice) else 0
            return self._fixup(address, code, choice, fresh, reserved)

        return patch_page(address, code, scan.sites, self._inline, ground, place, fixed)

    def _fixup(self, address: int, code: bytes, choice: Choice, fresh: list[Fixup], reserved: int) -> int | None:
        """Address of the fixup for a choice, made at its first use; None where there is no room or no reach.

        `reserved` is the place that the plan has for it, or 0.
        """
        at = choice.site.offset
        key = (address + at, code[at : choice.end])
        if key in self._fixups:
            return self._fixups[key]
        assert choice.window is not None
        size = size_of(choice.window)
        place = reserved if reserved and self._reserved.pop(reserved, -1) == size else self._arena.next
        try:
            asm.relative(address + at + asm.JUMP_LENGTH, place)
            fixup = assemble_fixup(place, address, choice.window)
        except asm.OutOfReach:
            fixup = None
        if fixup is None or (place == self._arena.next and self._arena.take(size) is None):
            self._fixups[key] = None
            return None
        self._fixups[key] = place
        fresh.append(fixup)
        return place


def _likely_starts(before: bytes, whole: bytes) -> list[int]:
    """Offsets from 0 to LONGEST - 1, those first at which decoding from within `before` most likely enters the page.

    Decoding that began early has had more time to fall into step, so it counts for more.
    """
    votes = [0] * (LONGEST + 1)
    data = before + whole[: 2 * LONGEST]
    for begin in range(len(before)):
        found: list[tuple[int, int, int]] = []
        start = decode(data, begin, len(before), 0, found) - len(before)
        votes[min(start, LONGEST)] += len(before) - begin
    return sorted(range(LONGEST), key=lambda start: (-votes[start], start))


def _key(whole: bytes, start: int, boundaries: int) -> bytes:
    digest = hashlib.blake2b(whole, digest_size=KEY_SIZE)
    digest.update(start.to_bytes(2, "little") + boundaries.to_bytes(PAGE // 8, "little"))
    return digest.digest()
