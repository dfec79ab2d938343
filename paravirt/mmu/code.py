"""Code pages: translated copies of the guest kernel's code, scanned at first execution.

Room: `paravirt/mmu`. A guest frame that is about to execute in the kernel view loses its writable
mappings and is executed from a copy that the `Translator` made fit; a store to the frame takes the
copy out of use again. A frame that is unchanged when it executes next gets the same copy back, so
neither the scan nor the engine's own translation is done twice. Different contents never share a
copy's frame: the engine may keep what it translated from it.
"""

from collections.abc import Callable
from typing import Any

from paravirt.abi import Window
from paravirt.layout import Layout
from paravirt.mmu.views import ACTIVE_CODE, MAY_BE_CODE, MemoryViews
from paravirt.translator import Hypercall, Translator

_EDGE = 15
"""An instruction is at most 15 bytes long."""


class _Copy:
    """One translated copy."""

    __slots__ = ("entered", "entries", "known", "physical", "source")

    def __init__(self, source: bytes, physical: int) -> None:
        self.source = source
        """The guest's bytes."""
        self.physical = physical
        self.entries: list[Any] = []
        """What maps the copy now, as the views name it."""
        self.entered: set[int] = set()
        """Addresses at which the translator agreed that this copy may be entered; there come only more."""
        self.known: Any = None
        """What was last told of it as a value (`paravirt.services.code_state`)."""


class CodePages:
    """All translated code of one virtual machine."""

    def __init__(
        self,
        guest: memoryview,
        code: memoryview,
        window: memoryview,
        translator: Translator,
        peek: Callable[[int], bytes],
        entry_of: Callable[[int], int],
        layout: Layout,
        abi: Window,
    ) -> None:
        """`peek` gives the page that holds a guest-virtual address, or nothing; `entry_of` where a page is entered."""
        self._layout = layout
        self._abi = abi
        self._guest = guest
        self._code = code
        self._window = window
        self._translator = translator
        self._peek = peek
        self._entry_of = entry_of
        self._shadow: MemoryViews
        self._copies: dict[tuple[int, int], _Copy] = {}
        self._frame_at: dict[int, int] = {}
        """By address, the frame that code was copied from there: -1 for several, which may take turns."""
        self._by_frame: dict[int, list[_Copy]] = {}
        self._known: dict[tuple[int, bytes], int] = {}
        self._used = 0
        self.hypercalls: dict[int, Hypercall] = {}
        """Traps planted inside fixups, by their guest-virtual address."""
        self._fixups: dict[int, bytes] = {}
        self.fixup_sites: dict[int, int] = {}
        """First address of every fixup, and the site it stands for."""
        self.translations = 0
        self.sites = 0
        self.reused = 0
        self.on_change: Callable[[int], None] = lambda _page: None
        """Called with the guest-virtual page whose code may have changed."""
        self.forget_code: Callable[[], None] = lambda: None
        """Called when copies' frames are about to get other contents: the engine forgets all translated code."""
        self.on_activate: Callable[[], None] = lambda: None
        """Called when some frame became code."""
        self.on_store: Callable[[int], None] = lambda _frame: None
        """Called with a frame whose code is about to be written."""

    def attach(self, shadow: MemoryViews) -> None:
        """Connect to the views that map the copies."""
        self._shadow = shadow
        shadow.attach(self)

    def activate(self, address: int, frame: int, at: Any) -> int:
        """Physical address of the copy to execute for the page at `address` in guest `frame`.

        `at` is what will map the copy.
        """
        entry = self._entry_of(address)
        source = bytes(self._guest[frame << 12 : (frame + 1) << 12])
        key = (address, frame)
        copy = self._copies.get(key)
        if copy is None or copy.source != source or entry not in copy.entered:
            copy = self._make(address, frame, source, entry, copy)
        else:
            self.reused += 1
            if self._frame_at[address] != frame:
                self.on_change(address)
        self._shadow.revoke_writers(frame)
        self._shadow.set_kind(frame, ACTIVE_CODE)
        self.on_activate()
        copy.entries.append(at)
        return copy.physical

    def _make(self, address: int, frame: int, source: bytes, entry: int, old: _Copy | None) -> _Copy:
        self.on_change(address)
        physical = self._translate(address, source, entry)
        if old is not None and old.physical == physical:
            old.entered.add(entry)
            return old
        if self._copies.get((address, frame)) is not old:
            old = None  # all copies were just forgotten
        copy = _Copy(source, physical)
        copy.entered.add(entry)
        self._copies[address, frame] = copy
        self._note_frame(address, frame)
        siblings = self._by_frame.setdefault(frame, [])
        if old is not None:
            for at in old.entries:
                self._shadow.drop(at)
            siblings.remove(old)
        siblings.append(copy)
        return copy

    def _note_frame(self, address: int, frame: int) -> None:
        if self._frame_at.setdefault(address, frame) != frame:
            self._frame_at[address] = -1

    def note_frames(self) -> None:
        """Copies were put in place from outside."""
        self._frame_at.clear()
        for address, frame in self._copies:
            self._note_frame(address, frame)

    def _translate(self, address: int, source: bytes, entry: int) -> int:
        before = self._peek((address - 1) & self._abi.last_address)[-_EDGE:]
        after = self._peek((address + 4096) & self._abi.last_address)[:_EDGE]
        translation = self._translator.translate(address, source, before, after, entry)
        for fixup in translation.fixups:
            offset = fixup.address - self._abi.fixups
            if not 0 <= offset <= self._abi.fixup_size - len(fixup.code):
                raise ValueError(f"a fixup at {fixup.address:#x} lies outside the fixup region")
            self._window[offset : offset + len(fixup.code)] = fixup.code
            self.hypercalls.update(fixup.hypercalls)
            self.fixup_sites[fixup.address] = fixup.site
            self._fixups[fixup.address] = fixup.code
        physical = self._known.get((address, translation.code))
        if physical is not None:
            return physical
        if self._used == self._layout.code_count:
            self._start_over()
        number = self._used
        self._used += 1
        self._code[number << 12 : (number + 1) << 12] = translation.code
        self.translations += 1
        self.sites += translation.sites
        physical = self._layout.code + (number << 12)
        self._known[address, translation.code] = physical
        return physical

    def _start_over(self) -> None:
        """Every frame for copies is in use: forget all copies, and what the engine made of them."""
        for copies in self._by_frame.values():
            for copy in copies:
                for at in copy.entries:
                    self._shadow.drop(at)
        self._copies.clear()
        self._frame_at.clear()
        self._by_frame.clear()
        self._known.clear()
        self._used = 0
        self._shadow.flush_tlb()
        self.forget_code()

    def deactivate(self, frame: int) -> None:
        """The guest is about to write to `frame`: its copies leave use."""
        self.on_store(frame)
        for copy in self._by_frame.get(frame, ()):
            for at in copy.entries:
                self._shadow.drop(at)
            copy.entries.clear()
        self._shadow.set_kind(frame, MAY_BE_CODE)
        self._shadow.flush_tlb()

    @property
    def has_fixups(self) -> bool:
        """Whether some translated code leads to a fixup."""
        return bool(self.fixup_sites)

    def copy_of(self, page: int, frame: int) -> memoryview | None:
        """The bytes that are executed at guest-virtual `page`, where it is in use as code of `frame`."""
        copy = self._copies.get((page, frame))
        if copy is None or not copy.entries:
            return None
        at = copy.physical - self._layout.code
        return self._code[at : at + 4096]

    def fixup_byte(self, address: int) -> int:
        """The byte at a guest-virtual address among the fixups."""
        return self._window[address - self._abi.fixups]

    def copy_at(self, physical: int) -> memoryview:
        """The 4096 bytes of the copy at an engine-physical address."""
        at = physical - self._layout.code
        return self._code[at : at + 4096]

    def window_bytes(self) -> memoryview:
        """The hypervisor window's memory: fixups, shared page, and what is not used."""
        return self._window

    def intact(self) -> bool:
        """Whether every fixup and every copy in use still holds what was put there."""
        fixups = all(
            self._window[start - self._abi.fixups : start - self._abi.fixups + len(code)] == code
            for start, code in self._fixups.items()
        )
        copies = all(
            self._code[physical - self._layout.code : physical - self._layout.code + 4096] == code
            for (_address, code), physical in self._known.items()
        )
        return fixups and copies

    def forget_mappings(self) -> None:
        """All shadow tables are gone."""
        for copies in self._by_frame.values():
            for copy in copies:
                copy.entries.clear()

    def executes_from(self, page: int, frame: int) -> bool:
        """Whether the code at guest-virtual `page` is being executed from a copy of `frame`."""
        copy = self._copies.get((page, frame))
        return copy is not None and bool(copy.entries)
