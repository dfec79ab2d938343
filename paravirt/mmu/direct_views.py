"""The two views of memory where the processor walks the guest's own tables.

Room: `paravirt/mmu`. The kernel's view is the guest's root. User code's is a copy of that root's first half, of those
entries that have the guest's user bit: a guest keeps pages of its kernel out of what such an entry leads to. Nothing is
filled: every page fault is the guest's. Code runs from the guest's frames: a ported kernel has nothing to rewrite.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from emulator.isa.exceptions import ProcessorShutdown
from emulator.isa.x86 import walk as w
from emulator.isa.x86.processor import Fault
from paravirt.mmu.frame_types import Refusal, Refused
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW, CodeSource

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from paravirt.abi import Window
    from paravirt.layout import Layout
    from paravirt.mmu.direct_host import DirectHost
    from paravirt.mmu.direct_tables import DirectTables
    from paravirt.mmu.direct_walk import DirectWalker
    from paravirt.mmu.entries import MappingEngine

_HALF: Final = 256
_LAST: Final = 511
_POINTS: Final = w.PRESENT | w.WRITABLE | w.USER | w.ACCESSED
_OWN_PAGE: Final = w.PRESENT | w.USER | w.ACCESSED | w.DIRTY
_PAGE_FAULT: Final = 14
_UPPER_HALF: Final = 0xFFFF_0000_0000_0000
_HOLE: Final = 0x8000_0000_0000
_MOST_PAGES: Final = 16
"""Of which it is looked at one by one whether code there was changed."""


class DirectViews:
    """`MemoryViews` of one virtual CPU of an x86-64 guest. Its tables have at least one root in use."""

    def __init__(
        self,
        engine: MappingEngine,
        host: DirectHost,
        tables: DirectTables,
        walker: DirectWalker,
        window: tuple[Window, Layout],
        forget_translations: Callable[[], None],
        reserved: Collection[int] = (),
    ) -> None:
        """`forget_translations` is how those of software are forgotten; `reserved` are the engine's own entries of a
        root."""
        self._engine = engine
        self._host = host
        self._frames = host.frames
        self.tables = tables
        self._walker = walker
        self._forget_translations = forget_translations
        self.view = KERNEL_VIEW
        self.fills = self.prefilled = 0
        self.technique: Any = None
        self._root = 0
        """Machine frame of the root in use."""
        self._user = host.take()
        """The hypervisor's frame of user code's root."""
        self._user_of = (-1, -1)
        """The root that it was copied of, and the count of changes then."""
        self._lent = (-1, -1)
        """The same of the root that the hypervisor's window was last seen to be in."""
        self._last: tuple[int, int] = (-1, -1)
        self._executed: dict[int, int] = {}
        """By machine frame, a hash of its contents when it was last mapped executable; nobody can know two of one."""
        self._probe, self._probed = self._make_probe()
        self._directory, self._upper = self._make_window(*window)
        self._place = window[0]
        slot = next(slot for slot in tables.form.reserved if slot not in reserved)
        tables.window[slot] = self._make_numbers()
        self.numbers = _UPPER_HALF | slot << 39
        """Guest-virtual address at which the guest reads its frame numbers: 32 bits for each of its machine frames."""
        tables.new_code = set()

    # -- the hypervisor's own tables ------------------------------------------------------------

    def _make_window(self, window: Window, layout: Layout) -> tuple[int, int]:
        """Tables that lead to the hypervisor's window, the last 2 MiB of all addresses; returns the entries that lead
        to them from a guest's table of level 3, and of level 4."""
        pages, directory, upper = (self._host.take() for _ in range(3))
        leaves = self._host.words(pages)
        fixups = window.fixup_size >> 12
        for index in range(fixups):
            leaves[index] = layout.window + (index << 12) | _OWN_PAGE
        leaves[fixups] = layout.window + (fixups << 12) | _OWN_PAGE | w.WRITABLE | w.NO_EXECUTE
        self._host.words(directory)[_LAST] = pages << 12 | _POINTS
        self._host.words(upper)[_LAST] = directory << 12 | _POINTS
        return directory << 12 | _POINTS, upper << 12 | _POINTS

    def _make_probe(self) -> tuple[int, int]:
        """Tables that map one frame at address 0, for `_forget_code`; returns the frames of the first and the last."""
        frames = [self._host.take() for _ in range(4)]
        for upper, lower in pairwise(frames):
            self._host.words(upper)[0] = lower << 12 | _POINTS
        return frames[0], frames[-1]

    def _make_numbers(self) -> int:
        """Map the guest's frame numbers by machine frame, read-only; returns the root's entry that leads there."""
        domain = self.tables.domain
        upper, directory = self._host.take(), self._host.take()
        pages = -(-4 * domain.count // 4096)
        copy = bytes(domain.guest.cast("B"))
        for page in range(pages):
            if page % 512 == 0:
                table = self._host.take()
                self._host.words(directory)[page >> 9] = table << 12 | _POINTS
            frame = self._host.take()
            part = copy[page << 12 : (page << 12) + 4096]
            self._host.words(frame).view("uint8")[: len(part)] = list(part)
            self._host.words(table)[page & 511] = frame << 12 | _OWN_PAGE | w.NO_EXECUTE
        self._host.words(upper)[0] = directory << 12 | _POINTS
        return upper << 12 | (_POINTS & ~w.WRITABLE)

    def lend_window(self) -> None:
        """See to it that the root in use leads to the window. Raises `Refused` where the guest has something there."""
        tables, domain = self.tables, self.tables.domain
        version = self._root, tables.top_changes
        if version == self._lent:
            return
        entry = tables.words[(self._root - domain.first) * 512 + _LAST]
        if entry & w.PRESENT and entry & w.FRAME_MASK != self._upper & w.FRAME_MASK:
            tables.lend((entry & w.FRAME_MASK) >> 12, _LAST, self._directory)
        else:
            tables.lend(self._root, _LAST, self._upper)
        self._lent = version

    def _user_root(self) -> int:
        version = self._root, self.tables.top_changes
        if version != self._user_of:
            kept = self.tables.form.kept
            first = (self._root - self.tables.domain.first) * 512
            words = [
                entry if entry & w.PRESENT and entry >> kept & w.USER else 0
                for entry in self.tables.words[first : first + _HALF]
            ]
            own, at = self._host.words(self._user)[:_HALF], self._user << 12
            changed = [index for index, old in enumerate(own.tolist()) if old not in (0, words[index])]
            own[:] = words
            self._engine.flush_tlb([(at + 8 * index, -1) for index in changed])
            self._user_of = version
        return self._user << 12

    @property
    def bytes_used(self) -> int:
        """Memory of the hypervisor's: its tables, and what is kept of each of the guest's frames."""
        return self._host.bytes_used

    # -- roots and translations -----------------------------------------------------------------

    @property
    def root(self) -> int:
        """Machine frame of the root in use."""
        return self._root

    def load(self, frame: int) -> None:
        """Use another root (a machine frame): all of it is validated first. Raises `Refused`, and nothing changed."""
        tables, before = self.tables, self._root
        tables.use_root(frame)
        self._root = frame
        try:
            self.lend_window()
        except Refused:
            self._root = before
            tables.leave_root(frame)
            raise
        if before:
            tables.leave_root(before)
        self._walker.root = tables.domain.guest[frame - tables.domain.first] << 12
        self.flush_all()

    def settle(self) -> None:
        """After tables were changed: what the processor has that is no longer so goes before the guest goes on."""
        if self._frames.flush_due:
            self.flush_all()
        if self._lent[1] != self.tables.top_changes:
            self.lend_window()
        fresh = self.tables.new_code
        if fresh:
            self._look_at_code(fresh)
            fresh.clear()

    def _look_at_code(self, fresh: Collection[int]) -> None:
        """The engine forgets the code of a frame that becomes executable, or is so, and has held other code before."""
        domain, executed = self.tables.domain, self._executed
        for frame in fresh:
            at = (frame - domain.first) << 12
            now = hash(bytes(domain.memory[at : at + 4096]))
            if executed.get(frame, now) != now:
                self._forget_code(frame)
            executed[frame] = now

    def _forget_code(self, frame: int) -> None:
        """Let the engine forget what it made of a frame's code: it asks for an address that maps the frame."""
        self._host.words(self._probed)[0] = frame << 12 | _OWN_PAGE
        self._engine.set_root(self._probe << 12)
        self._engine.code_changed(0, 4096)
        self.use(self.view)

    def code_written(self, address: int = 0, size: int = 0) -> None:
        """The guest says that it wrote code there; or, where no size is said, that it may have done so anywhere."""
        pages = range(address >> 12, (address + size - 1 >> 12) + 1)
        found = set(map(self._machine_frame, [page << 12 for page in pages])) if len(pages) <= _MOST_PAGES else {-1}
        if not found or -1 in found:
            self._look_at_code(list(self._executed))
            return
        self._look_at_code(found & self._executed.keys())

    def _machine_frame(self, address: int) -> int:
        """The frame that the kernel reaches at an address, or -1."""
        number = -1 if (address + _HOLE) >> 48 & 0xFFFF else self.frame_of(address)
        return -1 if number < 0 else self.tables.domain.machine[number]

    def use(self, view: int) -> None:
        """Make `view` of the current root the one that the engine runs in."""
        self.view = view
        self._engine.set_root(self._root << 12 if view == KERNEL_VIEW else self._user_root())

    def flush_all(self) -> None:
        """Every translation goes, the hypervisor's own of guest addresses too."""
        self._forget_translations()
        self._engine.flush_tlb(self.tables.take_changes())  # a root is not enough where an engine shadows what it walks
        self.use(self.view)
        self._frames.flushed()

    def invalidate(self, _address: int) -> None:
        """One translation goes, of the engine's and of the hypervisor's."""
        self._forget_translations()
        self._engine.flush_tlb(self.tables.take_changes())

    def flush_tlb(self) -> None:
        """Let the engine forget translations."""
        self._engine.flush_tlb()

    def load_root(self) -> None:
        """A guest that wrote the root's register by itself: only calls do that here."""
        raise ProcessorShutdown("a guest whose own tables are walked loaded a root by an instruction; roots are called")

    # -- faults ---------------------------------------------------------------------------------

    def fill(self, address: int, write: bool, fetch: bool) -> None:
        """Every fault is the guest's; raises it. Returns where its tables allow the access by now: a translation that
        the engine has kept is stale."""
        self._walker.walk(address, write, self.view == USER_VIEW, fetch)
        self.fills += 1
        again = address, self.fills - 1
        if self._last == again:  # twice in a row: what the walk allows the processor does not
            raise Fault(_PAGE_FAULT, w.ERROR_PRESENT | (w.ERROR_WRITE if write else 0), address)
        self._last = address, self.fills
        self._engine.flush_tlb()

    def install_window(self) -> None:
        """It is in every root."""
        try:
            self._lent = (-1, -1)
            self.lend_window()
        except Refused:
            raise ProcessorShutdown("a guest mapped something at the hypervisor's window; leave it free") from None

    def install_descriptors(self, _address: int) -> bool:
        """There are no descriptors."""
        return False

    def frame_of(self, address: int) -> int:
        """The frame that the guest's kernel has mapped at `address`, or -1."""
        try:
            return self._walker.walk(address, False, False, False).frame >> 12
        except Fault:
            return -1

    def written(self, number: int) -> None:
        """The hypervisor is about to store into a frame for the guest: never into a table."""
        at = self.tables.domain.machine[number] - self._frames.first
        if self._frames.uses[at] and self._frames.valid[at]:
            raise Refused(Refusal.WRITABLE_TABLE, at + self._frames.first)

    # -- what only translated code needs --------------------------------------------------------

    def expose(self, address: int, frame: int, writable: bool) -> Any:
        """No instruction is run alone: code runs from the guest's frames anyway."""
        raise ProcessorShutdown(f"code at {address:#x} runs from frame {frame:#x} itself (writable: {writable})")

    def drop(self, at: Any) -> None:
        """Nothing was exposed."""

    def mark_code(self, first: int, last: int) -> None:
        """Code is not write-protected."""

    def revoke_writers(self, number: int) -> None:
        """Code is not write-protected."""

    def set_kind(self, number: int, kind: int) -> None:
        """Code is not write-protected."""

    def attach(self, code: CodeSource) -> None:
        """There are no copies of code."""
