"""Run-time rewriting: the `Translator` that the hypervisor asks for every page of kernel code it is about to execute.

Room: `bt`; fulfils `paravirt.translator.Translator`. It remembers what it has seen: one result an address, content and
entry, fixups one a site, findings on disk by content. It never touches guest memory and never asks what a page means.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt.pagecache import KEY_SIZE, pack_scan, unpack_scan
from bt.pagescan import PAGE, Found, PageScan
from bt.planned import Planned
from bt.pristine import Pristine
from bt.tactics.page import PatchedPage, patch_page
from bt.tactics.registry import tactics_of
from bt.tactics.tactics import (
    ONLY_PLANT,
    PLANT,
    STRATEGIES,
    Arena,
    Choice,
    CodePage,
    Extensible,
    ImagePatch,
    Interworking,
    OutOfReach,
    Patch,
    Tactic,
)
from bt.translations import NOWHERE, Kept, Place, context_of, holds, state_of
from emulator.errors import UsageError
from emulator.isa.operation import Operation
from paravirt.translator import Fixup, Translation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt.image import Image
    from bt.pagecache import PageCache
    from bt.plan import Plan
    from bt.textmap import PristinePage
    from bt.translations import Translations

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


class _Seen:
    """A page as it was when it was translated last."""

    __slots__ = ("_packed", "_scan", "whole")

    def __init__(self, whole: bytes, scan: PageScan | None, packed: bytes = b"") -> None:
        self.whole = whole
        """With what followed it."""
        self._scan = scan
        self._packed = packed

    @property
    def scan(self) -> PageScan:
        """What was found."""
        if self._scan is None:
            self._scan = unpack_scan(self._packed)
        return self._scan


class LoadTimeTranslator:
    """Translates pages of guest kernel code; see `paravirt.translator.Translator.translate`.

    `image` gives the pristine boundaries, for a guest whose code lies `delta` bytes above where it is linked.
    The loader applies `image_patches` to the guest's memory before the guest runs. A `plan` (of a rewritten file) fixes
    where the fixups of unchanged sites lie, and which sites have none. `isa` counts where there is no image. `trapped`
    are operations that neither exit by themselves nor can be done in the guest, on the engine that it runs on; there
    fixups do those that are `inlined`, besides what they do everywhere.
    Raises `UsageError` for an unknown mode, and for a plan of another image or mode.
    """

    def __init__(
        self,
        mode: str,
        image: Image | None = None,
        delta: int = 0,
        cache: PageCache | None = None,
        plan: Plan | None = None,
        isa: str = "x86-64",
        trapped: Collection[Operation] = (),
        inlined: Collection[Operation] = (),
    ) -> None:
        if mode not in STRATEGIES:
            raise UsageError(f"there is no translator mode {mode!r}; take one of {', '.join(STRATEGIES)}")
        began = time.perf_counter()
        self.mode = mode
        self.scanned = 0
        """Pages decoded, wholly or in part; the image's sweep counts as one where it was not cached."""
        self.cached = 0
        """Pages whose findings came from the pristine image, from memory or from disk."""
        self.followed = 0
        """Pages that are as the rewritten file has them."""
        self._tactics = tactics_of(image.isa.name, image.byte_order) if image is not None else tactics_of(isa)
        self._longest = self._tactics.longest
        self._unknown = 0
        self._trapped = frozenset(trapped)
        self._cache = cache
        self._pristine: Pristine | None = None
        self._image = image
        self._states = self._tactics if isinstance(self._tactics, Interworking) else None
        self._second_state = False
        """The page that is translated is entered in the processor's other state (ARM's T32)."""
        self._inlined = frozenset(inlined)
        self._ladder = self._tactics.ladder(mode, image, delta, cache)
        if self._inlined and isinstance(self._ladder, Extensible):
            self._ladder.extend(self._inlined)
        self._arena = Arena.of(self._ladder)
        self._waiting = self._ladder.prepare(self._arena.take)
        self.exchanges_threads = bool(getattr(self._ladder, "exchanges_threads", False))
        """ARMv7: whether the code that it gives has the thread registers exchanged."""
        self.image_patches: Sequence[ImagePatch] = self._ladder.patches
        """What the loader must change in the loaded image."""
        self._fixups: dict[tuple[int, bytes], int | None] = {}
        self._planned: Planned | None = None
        self._known: dict[tuple[int, bytes, int], _Known] = {}
        self._last: dict[int, _Seen] = {}
        self._swept = False
        self._kept: Translations | None = None
        self._looked: dict[tuple[int, bytes], tuple[int, int, int]] = {}
        """Fixups that the translation under way looked for: start and end of the window, and what was known before."""
        if image is not None:
            self._pristine = Pristine(image, delta, self.image_patches, cache)
        if plan is not None:
            plan.check(image, mode)
            self._planned = Planned(plan, delta == 0, self._trapped)
            self._waiting += self._planned.ready()
            self._arena.next = max(self._arena.next, plan.end)
        if cache is not None and image is not None and plan is None:
            context = context_of(image, mode, delta, self._trapped, self._waiting, self._inlined)
            region = self._arena.region
            self._kept = cache.translations(context, (region.start, region.end)) if context else None
        if self._kept is None and self._pristine is not None and (self._planned is None or delta):
            self._sweep(self._pristine)
        self.seconds = time.perf_counter() - began
        """Host seconds spent here, the image's sweep included."""

    def translate(self, address: int, code: bytes, before: bytes, after: bytes, entry: int) -> Translation:
        """Translate the page at guest-virtual `address`; see the protocol. Raises ValueError for a wrong size."""
        if len(code) != PAGE or address % PAGE or not 0 <= entry - address < PAGE:
            raise ValueError(f"a page of {len(code)} bytes at {address:#x} entered at {entry:#x} cannot be translated")
        began = time.perf_counter()
        try:
            whole = bytes(code) + bytes(after[: self._longest])
            self._second_state = self._states is not None and bool(entry & 1)
            entry -= self._second_state
            return self._translate(address, whole, bytes(before[-self._longest :]), entry - address)
        finally:
            self.seconds += time.perf_counter() - began

    def close(self) -> None:
        """Write the cache. Idempotent."""
        if self._kept is not None:
            self._kept.close()
        if self._cache is not None:
            self._cache.flush()

    def _translate(self, address: int, whole: bytes, before: bytes, entry: int) -> Translation:
        """`whole` is the page with what follows it, `entry` an offset."""
        content = hashlib.blake2b(whole, digest_size=KEY_SIZE, key=b"2" if self._second_state else b"").digest()
        for key in ((address, content, -1), (address, content, entry)):
            known = self._known.get(key)
            if known is not None and known.enterable >> entry & 1:
                self.cached += 1
                return known.translation
        linked = self._pristine.linked(address) if self._pristine else None
        static = self._static(address, whole, entry, linked)
        if static is not None:
            return static
        recalled = self._recall(address, content, whole, before, entry)
        if recalled is not None:
            return recalled
        page = self._pristine_page(linked)
        following = self._arena.next
        settled = page is not None and page.start < PAGE
        history = b"" if settled or self._kept is None else self._history(address, before)
        self._looked = {}
        scan = first = self._scan(address, whole, before, entry, page, linked or 0)
        if not self._second_state:
            self._last[address] = _Seen(whole, scan)
        natural = bool(scan.boundaries >> entry & 1)
        if not natural:
            scan = self._tactics.with_entry(scan, whole[:PAGE], whole[PAGE:], entry)
        fresh: list[Fixup] = []
        patched = self._rewrite(address, whole, scan, page, -1, fresh)
        special = not natural or bool(patched.inside >> entry & 1)
        if patched.inside >> entry & 1:
            patched = self._rewrite(address, whole, scan, page, entry, fresh)
        enterable = scan.boundaries & ~patched.inside
        if self._kept is not None:
            places = tuple(
                Place(start, end, was, state_of(self._fixups, key)) for key, (start, end, was) in self._looked.items()
            )
            found = (patched.code, enterable, special, len(scan.sites), pack_scan(first), places)
            kept = Kept(*found, following, self._arena.next, tuple(fresh), history)
            self._kept.put(_kept_key(address, content, entry if special or history else -1), kept)
        return self._remember(
            address, content, entry if special else -1, enterable, patched.code, fresh, len(scan.sites)
        )

    def _recall(self, address: int, content: bytes, whole: bytes, before: bytes, entry: int) -> Translation | None:
        """The translation as an earlier run kept it, where all that it depends on is as it was then."""
        if self._kept is None:
            return None
        for one in (-1, entry):
            for kept in self._kept.find(_kept_key(address, content, one)):
                if not kept.enterable >> entry & 1 or not holds(kept, address, whole, self._fixups, self._arena.next):
                    continue
                if kept.history and kept.history != self._history(address, before):
                    continue
                for place in kept.places:
                    made = None if place.after == NOWHERE else place.after
                    self._fixups[address + place.start, whole[place.start : place.end]] = made
                if kept.makes:
                    self._arena.next = kept.after
                self.cached += 1
                if not self._second_state:
                    self._last[address] = _Seen(whole, None, kept.scan)
                memo = entry if kept.special else -1
                return self._remember(address, content, memo, kept.enterable, kept.code, kept.fixups, kept.sites)
        return None

    def _remember(
        self, address: int, content: bytes, entry: int, enterable: int, code: bytes, made: Sequence[Fixup], sites: int
    ) -> Translation:
        """Keep a translation in memory; what is given out has the fixups that the hypervisor has not seen."""
        self._known[address, content, entry] = _Known(Translation(code, (), sites), enterable)
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        ready, self._waiting = self._waiting, ()
        return Translation(code, (*ready, *made), sites)

    def _history(self, address: int, before: bytes) -> bytes:
        """Hash of what earlier translations and the page before say of a page that the image does not."""
        digest = hashlib.blake2b(before, digest_size=KEY_SIZE)
        last, previous = self._last.get(address), self._last.get(address - PAGE)
        digest.update(bytes((len(before), last is not None, previous.scan.overflow + 1 if previous is not None else 0)))
        if last is not None:
            digest.update(last.whole + pack_scan(last.scan))
        return digest.digest()

    def _pristine_page(self, linked: int | None) -> PristinePage | None:
        """What the image says of a page."""
        if self._pristine is None or linked is None:
            return None
        self._sweep(self._pristine)
        return self._pristine.page(linked)

    def _sweep(self, pristine: Pristine) -> None:
        """Sweep the image, or read what was kept of it; count it, once."""
        if not self._swept:
            self._swept = True
            self.scanned += not pristine.map.cached

    def _static(self, address: int, whole: bytes, entry: int, linked: int | None) -> Translation | None:
        """The page as the rewritten file has it, where it still is what the file was made from; else None."""
        if self._planned is None or self._pristine is None or linked is None or self._pristine.moved(linked) != address:
            return None
        page = self._planned.page(linked)
        contents = self._pristine.contents(linked)[: len(whole)]
        if page is None or contents != whole or page.inside >> entry & 1:
            return None
        code = page.code(whole)
        if code is None:
            return None
        self.followed += 1
        fresh, self._waiting = self._waiting, ()
        return Translation(code, fresh, page.sites)

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
                last = _Seen(contents, pristine)
        own = self._scan_states(whole, before, entry, linked if page is not None else None)
        if own is not None:
            return own
        if page is None and last is not None:
            # No image speaks for the page, but it was entered before: what did not change keeps its boundaries.
            scan = self._tactics.rescan_page(last.whole, last.scan, whole)
            if scan.boundaries >> entry & 1:
                self.scanned += 1
                return scan
        if page is not None and page.start < PAGE:
            return self._scan_from(page.start, whole, boundaries, last)
        if last is not None:  # most often an unknown page still begins where it did
            scan = self._scan_from(last.scan.start, whole, boundaries, last)
            if scan.boundaries >> entry & 1:
                return scan
        return self._scan_from(self._start(address, whole, before, entry), whole, boundaries, last)

    def _scan_states(self, whole: bytes, before: bytes, entry: int, linked: int | None) -> PageScan | None:
        """The scan of a page with code of the processor's other state; None where it has none."""
        if self._states is None:
            return None
        found = self._states.scan_states(
            self._image, linked, self._second_state, whole[:PAGE], before, whole[PAGE:], entry
        )
        self.scanned += found is not None
        return found

    def _scan_from(self, start: int, whole: bytes, boundaries: int, last: _Seen | None) -> PageScan:
        """The scan of a page from offset `start`; `last` is what is known of the page as it was."""
        key = _key(whole, start, boundaries)
        kept = self._cache.get(key) if self._cache is not None else None
        if kept is not None:
            self.cached += 1
            return kept
        self.scanned += 1
        if last is not None and last.scan.start == start:
            scan = self._tactics.rescan_page(last.whole, last.scan, whole, boundaries)
        else:
            scan = self._tactics.scan_page(whole[:PAGE], whole[PAGE:], start, boundaries)
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
        head = (whole[: entry + self._longest] + bytes(PAGE))[:PAGE]
        for start in (*([last.scan.overflow] if last is not None else []), *self._tactics.starts(before, whole)):
            if start <= entry and self._tactics.scan_page(head, b"", start).boundaries >> entry & 1:
                return start
        return entry

    def _rewrite(
        self, address: int, whole: bytes, scan: PageScan, page: PristinePage | None, entry: int, fresh: list[Fixup]
    ) -> PatchedPage:
        """The translated page; new fixups are appended to `fresh`."""
        linked = self._pristine.linked(address) if self._pristine is not None else None
        code = CodePage(address, -1 if linked is None else linked, whole[:PAGE], whole[PAGE:], scan, page, entry)

        # A kernel runs at two addresses while it starts, and one page table may lead to a page under both: a trap is
        # right at any address, a jump is not.
        alias = linked is not None and self._pristine is not None and self._pristine.moved(linked) != address

        def strategy(site: Found) -> str:
            if self._trapped or self._inlined:
                operation = self._tactics.row_of(site.code).operation
                if operation in self._trapped:
                    return ONLY_PLANT if alias else PLANT
                if operation in self._inlined and not alias:
                    return self.mode
            if alias:
                return "trap"
            planned = self._planned.site(code.linked + site.offset) if self._planned is not None else None
            if planned is None or planned.tactic is not Tactic.TRAP:
                return self.mode
            at = planned.start - code.linked
            return "trap" if whole[at : at + len(planned.old)] == planned.old else self.mode

        def place(choice: Choice) -> tuple[int, tuple[Patch, ...]] | None:
            return self._fixup(code, choice, fresh)

        return patch_page(code, scan.sites, self._ladder.survey(code), strategy, place)

    def _fixup(self, page: CodePage, choice: Choice, fresh: list[Fixup]) -> tuple[int, tuple[Patch, ...]] | None:
        """Address of the fixup for a choice, made at its first use, and the patches; None where there is no room.

        Where the plan has one for the same window it is that.
        """
        draft = choice.draft
        assert draft is not None
        window = (page.code + page.after)[choice.start : choice.end]
        key = (page.address + choice.start, window)
        size = draft.size
        made = key in self._fixups
        if self._kept is not None and key not in self._looked:
            self._looked[key] = choice.start, choice.end, state_of(self._fixups, key)
        place = self._fixups.get(key)
        if not made and self._planned is not None and page.linked >= 0:
            planned = self._planned.fixup(page.linked + choice.start, window, size)
            if planned is not None:
                place, made = planned
        if place is None and made:
            return None
        try:
            fixup, patches = draft.place(self._arena.place(size) if place is None else place, page.address)
        except OutOfReach:
            self._fixups[key] = None
            return None
        if place is None and self._arena.take(size) is None:
            self._fixups[key] = None
            return None
        self._fixups[key] = fixup.address
        if not made:
            fresh.append(fixup)
        return fixup.address, patches


def _kept_key(address: int, content: bytes, entry: int) -> bytes:
    """Of a kept translation: address, hash of the content, and where it is entered (-1: at any instruction)."""
    tail = content + address.to_bytes(8, "little") + (entry + 1).to_bytes(2, "little")
    return hashlib.blake2b(tail, digest_size=KEY_SIZE).digest()


def _key(whole: bytes, start: int, boundaries: int) -> bytes:
    digest = hashlib.blake2b(whole, digest_size=KEY_SIZE)
    digest.update(start.to_bytes(2, "little") + boundaries.to_bytes(PAGE // 8, "little"))
    return digest.digest()
