"""What each frame of guest memory is used for, and what mapping of it that allows: never writable and executable.

Room: `paravirt/mmu`. It decides where a page leads and with which rights; where mappings are kept (shadow tables, a
software TLB) is a `Mappings`, which names them as it likes. A frame that kernel code is in executes from a translated
copy; one that user code is in executes as it is, and every other way to write it is seen first.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from emulator.isa.paging import EXECUTE, KERNEL_SHIFT, READ, USER_SHIFT, WRITE, PageWalk
from paravirt.mmu.views import ACTIVE_CODE, MAY_BE_CODE, PLAIN, USER_CODE, USER_VIEW, CodeSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paravirt.mmu.guard import TableGuard


class Mappings(Protocol):
    """Where mappings of frames are kept."""

    def remove(self, at: Any, number: int) -> None:
        """Take a mapping away if it still maps the frame."""
        ...

    def make_read_only(self, places: Sequence[Any], number: int) -> bool:
        """Take the right to write from mappings that still map the frame; whether that changed anything."""
        ...

    def make_pieces_read_only(self, number: int) -> bool:
        """The same, for mappings that came about as part of a large page and were never noted."""
        ...

    def make_all_read_only(self, number: int) -> bool:
        """Take the right to write from every mapping of a frame, wherever it is; whether that changed anything."""
        ...

    def flush_tlb(self) -> None:
        """Let the engine forget mappings that were changed."""
        ...

    def forget_code(self, number: int) -> None:
        """Let the engine forget what it made of the code in a frame."""
        ...


class Frames:
    """The frames of one guest's memory, by number."""

    code: CodeSource

    def __init__(self, base: int, size: int, mappings: Mappings) -> None:
        """`base` and `size` of guest-physical memory, bytes."""
        self.base = base
        self.end = base + size
        self.count = size >> 12
        self.kinds_memory = memoryview(mmap.mmap(-1, max(self.count + 0xFFF & ~0xFFF, 0x1000)))
        """In whole pages, what follows."""
        self.kinds = self.kinds_memory[: self.count]
        """Per frame: plain, may be code, active code (a translated copy is mapped), or user code."""
        self.kind = np.frombuffer(self.kinds, dtype=np.uint8)
        """The same memory."""
        self.execute_only = False
        """Translated code is mapped so that it cannot be read."""
        self.exclusive = False
        """No mapping is both writable and executable, not even user code's: the engine misses stores to its code."""
        self.expectant = False
        """What may be code is never mapped writable ahead, since it costs to take that away."""
        self.coherent = False
        """The engine sees stores to code whatever mapping they come by: user code needs no guard."""
        self.on_user_store: Callable[[int], None] = lambda _number: None
        """Called with a frame of user code that is about to be written."""
        self.guard: TableGuard | None = None
        """Keeps some frames from being written; nothing does where guest tables are not write-protected."""
        self._mappings = mappings
        self._executors: dict[int, set[Any]] = {}
        """Executable mappings of frames that user code runs from."""
        self.writers: dict[int, list[Any]] = {}
        """Writable mappings of frames that may be code."""

    def forget(self) -> None:
        """All mappings are gone."""
        self.writers.clear()
        self._executors.clear()
        self.kind[self.kind == ACTIVE_CODE] = MAY_BE_CODE
        self.code.forget_mappings()

    def place(self, walk: PageWalk, at: Any, view: int, write: bool, fetch: bool) -> tuple[int, int]:
        """Engine-physical address and rights of what `at` is to map for a page of memory, for this access and more."""
        number = walk.frame - self.base >> 12
        guard = self.guard
        if guard is None or not guard.is_closed[number]:
            return self._place(number, walk, at, view, write, fetch)
        if write:
            guard.written(number, number << 12 | walk.address & 0xFFF)
            return self._place(number, walk, at, view, write, fetch)
        physical, rights = self._place(number, walk, at, view, write, fetch)
        return physical, rights & ~WRITE

    def _place(self, number: int, walk: PageWalk, at: Any, view: int, write: bool, fetch: bool) -> tuple[int, int]:
        user = view == USER_VIEW
        granted = walk.rights >> (USER_SHIFT if user else KERNEL_SHIFT)
        kind = self.kinds[number]
        if fetch and not user:
            if kind == USER_CODE:
                self._retire_user_code(number)
            copy = self.code.activate(walk.address & ~0xFFF, number, at)
            return copy, EXECUTE if self.execute_only else READ | EXECUTE
        readable = granted & READ
        writable = WRITE if write else granted & WRITE
        executable = granted & EXECUTE if user else 0
        if executable and not self.coherent and (fetch or (kind == USER_CODE and not (write and self.exclusive))):
            self._run_user_code(number, at)
            return walk.frame, readable | (0 if self.exclusive else writable) | EXECUTE
        if kind and writable:
            # Code that the guest may write is about to be: it reads what it patches first.
            if write or (kind == ACTIVE_CODE and self.execute_only):
                self.written(number)
                self.writers.setdefault(number, []).append(at)
            else:
                writable = 0
        return walk.frame, readable | writable | (executable if self.coherent else 0)

    def _run_user_code(self, number: int, at: Any) -> None:
        """User code runs from a frame, untouched: it is innocuous there.

        From now on a store through any other mapping is seen, since the engine may keep what it made of the code.
        """
        kind = self.kinds[number]
        if kind != USER_CODE:
            if kind == ACTIVE_CODE:
                self.code.deactivate(number)
            self.revoke_writers(number)
            self.kind[number] = USER_CODE
        self._executors.setdefault(number, set()).add(at)

    def written(self, number: int) -> None:
        """A frame is about to be written: code in it leaves use."""
        if self.guard is not None:
            self.guard.written(number)
        kind = self.kinds[number]
        if kind == ACTIVE_CODE:
            self.code.deactivate(number)
        elif kind == USER_CODE:
            self._retire_user_code(number)
            self.on_user_store(number)

    def _retire_user_code(self, number: int) -> None:
        """A frame with user code is about to be written, or to run as kernel code."""
        for at in self._executors.pop(number, ()):
            self._mappings.remove(at, number)
        self.kind[number] = MAY_BE_CODE
        self._mappings.flush_tlb()
        self._mappings.forget_code(number)

    def mark_code(self, first: int, last: int) -> None:
        """Frames `first`..`last` may hold kernel code: map them read-only until they are written."""
        region = self.kind[max(0, first) : min(self.count, last + 1)]
        region[region == PLAIN] = MAY_BE_CODE

    def revoke_writers(self, number: int) -> None:
        """Take every writable mapping of a frame away, since it is about to execute."""
        if self._make_read_only(number):
            self._mappings.flush_tlb()

    def _make_read_only(self, number: int) -> bool:
        """The same; whether translations must be flushed."""
        mappings = self._mappings
        changed = False
        if self.kinds[number] == PLAIN:
            changed = mappings.make_all_read_only(number)
            self.kinds[number] = MAY_BE_CODE
        changed |= mappings.make_read_only(self.writers.pop(number, ()), number)
        return changed | mappings.make_pieces_read_only(number)

    def close(self, number: int) -> bool:
        """Take every right to write a frame away; from now on its `guard` is asked first. Whether translations must be
        flushed now."""
        if self.kinds[number] == USER_CODE:
            self._retire_user_code(number)
        return self._make_read_only(number)

    def close_again(self, number: int) -> None:
        """The same for a frame that was closed and written since, every writable mapping of which was noted (see
        `read_only_ahead`): this is done at every flush. Translations must be flushed."""
        if self.kinds[number] == USER_CODE:
            self._retire_user_code(number)
        writers = self.writers.pop(number, None)
        if writers is not None:
            self._mappings.make_read_only(writers, number)

    def read_only_ahead(self, first: int, end: int) -> NDArray[np.bool_]:
        """Which of some frames may not be mapped writable before they are written to."""
        active: NDArray[np.bool_] = self.kind[first:end] >= (MAY_BE_CODE if self.expectant else ACTIVE_CODE)
        return active if self.guard is None else active | (self.guard.mirrors[first:end] != 0)

    def plain(self, first: int, count: int) -> bool:
        """Whether frames are memory, and none of them is known to be code."""
        return first >= 0 and first + count <= self.count and not self.kind[first : first + count].any()
