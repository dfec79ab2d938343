"""The two views of memory where the processor walks the guest's own tables.

Room: `paravirt/mmu`. The kernel's view is the guest's roots. User code's is a copy of the first root, of those entries
that a guest lets user code have: it keeps pages of its kernel out of what such an entry leads to. Nothing is filled:
every page fault is the guest's. Code runs from the guest's frames: a ported kernel has nothing to rewrite. What an
instruction set adds is in `direct_x86` and `direct_aarch64`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from emulator.isa.exceptions import ArchitecturalException, ProcessorShutdown
from emulator.isa.paging import EXECUTE, READ, WRITE, PageWalk, TableFormat
from paravirt.mmu.frame_types import HYPERVISOR, Refusal, Refused
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW, CodeSource

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from paravirt.abi import Window
    from paravirt.layout import Layout
    from paravirt.mmu.direct_host import DirectHost
    from paravirt.mmu.direct_tables import DirectTables

_ANYTHING: Final = READ | WRITE | EXECUTE
_MOST_PAGES: Final = 16
"""Of which it is looked at one by one whether code there was changed."""


class TableWalker(Protocol):
    """The software walk of tables in use, for what the hypervisor does in a guest's name."""

    roots: list[int]
    """Machine frames of the roots in use; 0 for none yet."""

    def find(self, address: int) -> tuple[int, int] | None:
        """Machine frame and index of the last-level entry for an address, None where there is no table."""
        ...

    def walk(self, address: int, write: bool, user: bool, fetch: bool) -> PageWalk:
        """Translate `address` for the access. Raises the guest's exception."""
        ...


class FlushedEngine(Protocol):
    """What these views ask of every engine."""

    def flush_tlb(self, changes: Sequence[tuple[int, int]] | None = None) -> None:
        """Forget translations; all, or those that entries at physical addresses gave."""
        ...

    def code_changed(self, address: int, size: int) -> None:
        """Forget what was made of the code at a mapped guest-virtual address."""
        ...


class DirectViews:
    """`MemoryViews` of one virtual CPU. Its guest's tables have at least one root in use."""

    OWN: ClassVar[TableFormat]
    """The entries of the hypervisor's own tables."""
    ROOTS: ClassVar[int] = 1
    """Roots that the processor walks at a time."""
    WINDOW_ROOT: ClassVar[int] = 0
    """Which of them has the hypervisor's window."""
    USER_SLOTS: ClassVar[int]
    """Entries of the first root, from the first on, that user code may have."""
    NUMBERS_AT: ClassVar[int]
    """Guest-virtual address that the root with the hypervisor's window begins at."""

    def __init__(
        self,
        engine: Any,
        host: DirectHost,
        tables: DirectTables,
        walker: TableWalker,
        window: tuple[Window, Layout],
        forget_translations: Callable[[], None],
        reserved: Collection[int] = (),
    ) -> None:
        """`engine` is the instruction set's. `forget_translations` is how those of software are forgotten; `reserved`
        are the engine's own entries of a root."""
        self._engine = engine
        self._host = host
        self._frames = host.frames
        self.tables = tables
        self._walker = walker
        self._forget_translations = forget_translations
        self.view = KERNEL_VIEW
        self.fills = self.prefilled = 0
        self.technique: Any = None
        self._roots = walker.roots
        """Machine frames of the roots in use."""
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
        self._lends: list[tuple[int, list[int]]] = [(window[0].base, self._make_window(*window))]
        """What is lent to tables of the guest's: addresses, and by level the entries that lead there."""
        self.numbers = self._place_numbers(reserved)
        """Guest-virtual address at which the guest reads its frame numbers: 32 bits for each of its machine frames."""
        tables.new_code = set()

    # -- what an instruction set adds -----------------------------------------------------------

    def _enter(self, view: int) -> None:
        """Let the engine run in a view."""
        raise NotImplementedError

    def _enter_probe(self) -> None:
        """Let the engine look at the tables of `_make_probe`."""
        raise NotImplementedError

    def _root_changed(self) -> None:
        """A root's entries were changed, which may be the one in use."""

    def _stale(self, address: int, write: bool) -> ArchitecturalException:
        """The exception for an access that the walk allows and the processor does not."""
        raise NotImplementedError

    # -- the hypervisor's own tables ------------------------------------------------------------

    def _index(self, address: int, level: int) -> int:
        """Of the entry for an address in a table of a level."""
        form = self.tables.form.levels[level - 1]
        return address >> form.shift & form.entries - 1

    def _make_window(self, window: Window, layout: Layout) -> list[int]:
        """Tables that lead to the hypervisor's window, which one table of pages has."""
        own, fixups = self.OWN, window.fixup_size >> 12
        leaves = [layout.window + (index << 12) | own.pages[READ | EXECUTE] for index in range(fixups)]
        leaves.append(layout.window + (fixups << 12) | own.pages[READ | WRITE])
        return self._leading_to(window.base, leaves)

    def _leading_to(self, address: int, leaves: Sequence[int]) -> list[int]:
        """Tables of the hypervisor's that have these entries of pages from an address on; returns by level the entries
        that lead there from a guest's tables."""
        host, top, point = self._host, self.tables.form.top, self.OWN.tables[_ANYTHING]
        first = self._index(address, 1)
        entries = {}
        for start in range(0, first + len(leaves), 512):
            frame = host.take()
            part = leaves[max(start - first, 0) : start + 512 - first]
            place = max(first - start, 0)
            host.words(frame)[place : place + len(part)] = part
            entries[self._index(address, 2) + (start >> 9)] = frame << 12 | point
        leading = [0, 0, next(iter(entries.values()))]
        for level in range(3, top + 1):
            frame = host.take()
            for index, entry in entries.items():
                host.words(frame)[index] = entry
            leading.append(frame << 12 | point)
            entries = {self._index(address, level): leading[level]}
        return leading

    def _make_probe(self) -> tuple[int, int]:
        """Tables that map one frame at address 0, for `_forget_code`; returns the frames of the first and the last."""
        frames = [self._host.take() for _ in self.OWN.levels]
        for upper, lower in pairwise(frames):
            self._host.words(upper)[0] = lower << 12 | self.OWN.tables[_ANYTHING]
        return frames[0], frames[-1]

    def _place_numbers(self, reserved: Collection[int]) -> int:
        """Have the guest's frame numbers in every root, in a slot that is none of the engine's: the last, which is the
        same for all engines. Their address."""
        form = self.tables.form
        slot = next(slot for slot in reversed(form.reserved) if slot not in reserved)
        address = self.NUMBERS_AT + (slot << form.levels[-1].shift)
        self.tables.window[slot] = self._leading_to(address, self._make_numbers())[form.top]
        return address

    def _make_numbers(self) -> list[int]:
        """Pages of the guest's frame numbers by machine frame: their entries, read-only."""
        domain, host = self.tables.domain, self._host
        copy = (domain.guest_array + domain.guest_array.dtype.type(domain.base)).tobytes()
        leaves = []
        for start in range(0, len(copy), 4096):
            frame, part = host.take(), copy[start : start + 4096]
            host.words(frame).view("uint8")[: len(part)] = list(part)
            leaves.append(frame << 12 | self.OWN.pages[READ])
        return leaves

    def leading_there(self, level: int, index: int) -> int:
        """The entry that the hypervisor lends to a guest's table of a level at an index. Raises `ValueError`."""
        for address, leading in self._lends:
            if 2 <= level < len(leading) and self._index(address, level) == index:
                return leading[level]
        raise ValueError(f"nothing is lent to entry {index} of page tables of level {level}")

    def lend_window(self) -> None:
        """See to it that the root in use leads to the window: where the guest's tables on the way to it end. Raises
        `Refused` where the guest has something there."""
        version = self._roots[self.WINDOW_ROOT], self.tables.top_changes
        if version == self._lent:
            return
        for address, leading in self._lends:
            self._lend(address, leading)
        self._lent = version

    def _lend(self, address: int, leading: Sequence[int]) -> None:
        tables, frames, frame = self.tables, self._frames, self._roots[self.WINDOW_ROOT]
        for level in range(tables.form.top, 1, -1):
            index, form = self._index(address, level), tables.form.levels[level - 1]
            entry = tables.words[(frame - tables.domain.first) * tables.form.words + index]
            below = ((entry & form.table_address) >> 12) - frames.first
            guests = entry & form.present and not (0 <= below < frames.count and frames.owner[below] == HYPERVISOR)
            if not guests or level == 2 or entry & form.kind_mask != form.table or frames.kind[below] != level - 1:
                tables.lend(frame, index, leading[level])
                return
            frame = below + frames.first

    def _user_root(self) -> int:
        version = self._roots[0], self.tables.top_changes
        if version != self._user_of:
            form = self.tables.form
            first, (mask, value) = version[0] - self.tables.domain.first, form.user
            own = {*form.reserved, *self.tables.lent_in(version[0])}
            present = form.levels[-1].present
            words = [
                entry if entry & present and entry & mask == value and index not in own else 0
                for index, entry in enumerate(self.tables.words[first * 512 : first * 512 + self.USER_SLOTS])
            ]
            copy, at = self._host.words(self._user)[: self.USER_SLOTS], self._user << 12
            changed = [index for index, old in enumerate(copy.tolist()) if old not in (0, words[index])]
            copy[:] = words
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
        """Machine frame of the root in use; the one with the hypervisor's window, where there are more."""
        return self._roots[self.WINDOW_ROOT]

    def begin(self, frames: Sequence[int]) -> None:
        """Take the first roots into use (machine frames), with all that is below. Raises `Refused`; then none is."""
        tables, taken = self.tables, []
        try:
            for frame in frames:
                tables.use_root(frame)
                taken.append(frame)
            self._roots[:] = frames
            self.lend_window()
        except Refused:
            self._roots[:] = [0] * len(frames)
            for frame in taken:
                tables.leave_root(frame)
            raise
        self.flush_all()

    def load(self, frame: int, part: int = 0) -> None:
        """Use another root (a machine frame): all of it is validated first. Raises `Refused`, and nothing changed."""
        tables, before = self.tables, self._roots[part]
        tables.use_root(frame)
        self._roots[part] = frame
        try:
            self.lend_window()
        except Refused:
            self._roots[part] = before
            tables.leave_root(frame)
            raise
        tables.leave_root(before)
        self.flush_all()

    def settle(self) -> None:
        """After tables were changed: what the processor has that is no longer so goes before the guest goes on."""
        if self._frames.flush_due:
            self.flush_all()
        if self._lent[1] != self.tables.top_changes:
            self.lend_window()
            self._root_changed()
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
        self._host.words(self._probed)[0] = frame << 12 | self.OWN.pages[READ | EXECUTE]
        self._enter_probe()
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
        number = self.frame_of(address)
        return -1 if number < 0 else self.tables.domain.machine[number]

    def use(self, view: int) -> None:
        """Make `view` of the current root the one that the engine runs in."""
        self.view = view
        self._enter(view)

    def put_back(self, roots: Sequence[int]) -> None:
        """Memory, and what its frames are used as, are those of a saved machine: use these roots (machine frames).
        Raises `Refused` where a guest has something at the hypervisor's window."""
        self._roots[:] = roots
        self.lend_window()
        self._root_changed()
        self._engine.flush_tlb()
        self._forget_translations()
        self._frames.flushed()

    def known_code(self, frames: Sequence[int]) -> None:
        """These machine frames can be executed, and the engine has made nothing of any code."""
        self._executed.clear()
        self._look_at_code(frames)

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
        """A guest that wrote a register of translation by itself: only calls do that here."""
        raise ProcessorShutdown("a guest whose own tables are walked loaded a root by an instruction; roots are called")

    # -- faults ---------------------------------------------------------------------------------

    def fill(self, address: int, write: bool, fetch: bool) -> None:
        """Every fault is the guest's; raises it. Returns where its tables allow the access by now: a translation that
        the engine has kept is stale."""
        self._walker.walk(address, write, self.view == USER_VIEW, fetch)
        self.fills += 1
        again = address, self.fills - 1
        if self._last == again:  # twice in a row: what the walk allows the processor does not
            raise self._stale(address, write)
        self._last = address, self.fills
        self._engine.flush_tlb()

    def install_window(self) -> None:
        """It is in every root."""
        try:
            self._lent = (-1, -1)
            self.lend_window()
        except Refused:
            raise ProcessorShutdown("a guest mapped something at the hypervisor's window; leave it free") from None

    def frame_of(self, address: int) -> int:
        """The frame that the guest's kernel has mapped at `address`, or -1."""
        try:
            return (self._walker.walk(address, False, False, False).frame >> 12) - self.tables.domain.base
        except ArchitecturalException:
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
