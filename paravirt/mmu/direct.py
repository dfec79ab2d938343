"""Direct paging: the guest's own table is what the processor walks; its stores and loads of entries are calls (the
lecture's "real guest page table").

Room: `paravirt/mmu`, a technique for para-virtual guests. A guest begins under shadow tables like every other, and goes
over with its first NEW_BASE: that root and all below it are validated. What it may not have is refused, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from emulator.errors import UsageError
from emulator.isa.entries import format_of
from paravirt.abi.calls import Status
from paravirt.abi.guests import MACHINE_OFFSET
from paravirt.mmu.direct_host import DirectHost
from paravirt.mmu.direct_tables import DirectTables
from paravirt.mmu.frame_types import Refused
from paravirt.mmu.snapshot import Snapshot
from paravirt.mmu.views import KERNEL_VIEW

if TYPE_CHECKING:
    from paravirt.mmu.direct_views import DirectViews, TableWalker
    from paravirt.mmu.shadow import ShadowPaging
    from paravirt.para.tables import TableCalls


@dataclass(frozen=True, slots=True)
class Walked:
    """What walking a guest's own tables takes on an instruction set."""

    form: str
    """Of its tables (`emulator.isa.entries`)."""
    walker: Callable[[DirectTables], TableWalker]
    views: type[DirectViews]


def _x86_64() -> Walked:
    from paravirt.mmu.direct_walk import DirectWalker
    from paravirt.mmu.direct_x86 import X86DirectViews

    return Walked("x86-64", DirectWalker, X86DirectViews)


def _aarch64() -> Walked:
    from paravirt.mmu.direct_aarch64 import AArch64DirectViews, AArch64DirectWalker

    return Walked("aarch64", AArch64DirectWalker, AArch64DirectViews)


def _i386() -> Walked:
    from paravirt.mmu.direct_i386 import I386DirectViews, I386DirectWalker

    return Walked("i386 PAE", I386DirectWalker, I386DirectViews)


WALKED: Final[dict[str, Callable[[], Walked]]] = {"x86-64": _x86_64, "i386": _i386, "aarch64": _aarch64}
"""Instruction sets whose guests' tables an engine can be let walk."""

WAY_WORD, FIRST_WORD, COUNT_WORD, NUMBERS_WORD, REFUSED_WORD = range(5)
"""Words of the shared page from `MACHINE_OFFSET` on: how entries are changed (`Direct.way`, 0 under shadow tables); the
guest's first machine frame and how many it has; where it reads which of its frames each of these is, or 0; requests
refused so far."""


class Direct(Snapshot):
    """The technique; a `Snapshot` until the guest's first NEW_BASE."""

    name = "direct"
    way: ClassVar[int] = 1
    """What the guest is told: each store a call, and each load."""
    translated: ClassVar[bool] = True
    """Entries are translated for the guest; otherwise it is told where it finds its frame numbers."""

    def __init__(self, shadow: ShadowPaging) -> None:
        super().__init__(shadow)
        self.host: DirectHost | None = None
        """The machine that this guest shares with others; its own where none is given before it runs."""
        self.views: DirectViews | None = None
        """Not None from the first NEW_BASE on."""
        self.calls: DirectCalls
        self.forms: Walked

    def begin(self, hypervisor: Any) -> None:
        """Connect to a guest's hypervisor. Raises `UsageError` for guests that cannot be paged so."""
        isa = hypervisor.machine.platform.isa
        if not hasattr(hypervisor, "load_root"):
            raise UsageError(
                "direct paging is for para-virtual guests, which ask for changes of tables; take another technique"
            )
        walked = WALKED.get(isa)
        if walked is None:
            raise UsageError(f"the tables of {isa} guests cannot be walked directly; take another technique")
        self.forms = walked()
        self.calls = self._make_calls(hypervisor)

    def _make_calls(self, hypervisor: Any) -> DirectCalls:
        return DirectCalls(self, hypervisor)

    def start(self, hypervisor: Any, roots: Sequence[int]) -> None:
        """Go over to the guest's own tables, whose roots' guest-physical addresses are `roots`. Raises `Refused`; then
        the guest stays under shadow tables."""
        tables, views = self.make(hypervisor)
        views.view = KERNEL_VIEW
        views.begin([tables.machine_frame(root >> 12) for root in roots])
        self.enter(hypervisor)
        views.use(views.view)
        self.tell(hypervisor)

    def make(self, hypervisor: Any) -> tuple[DirectTables, DirectViews]:
        """The guest's tables and its views of memory, made when they are first asked for."""
        calls = self.calls
        if calls.tables is None:
            memory = hypervisor.machine.memory
            host = self.host = self.host or DirectHost(memory.size)
            domain = host.add(memory.view, memory.base >> 12)
            tables = calls.tables = DirectTables(host.frames, domain, format_of(self.forms.form))
            host.join(hypervisor.engine.map_memory)
            walker = calls.walker = self.forms.walker(tables)
            calls.views = self.forms.views(
                hypervisor.engine,
                host,
                tables,
                walker,
                (hypervisor.WINDOW, hypervisor.LAYOUT),
                hypervisor.vcpu.forget_translations,
                hypervisor.engine.capabilities.reserved_root_slots,
            )
        assert calls.views is not None
        return calls.tables, calls.views

    def enter(self, hypervisor: Any) -> None:
        """Have the hypervisor use the guest's own tables, whose roots are in use."""
        if self.views is None:
            views = self.views = self.calls.views
            assert views is not None
            views.technique = self
            hypervisor.go_direct(views, self.calls.walker)

    def leave(self, hypervisor: Any) -> None:
        """Back to shadow tables: only one who goes back in a guest's time does that."""
        if self.views is not None:
            self.views = None
            hypervisor.go_shadowed(self._shadow)

    def tell(self, hypervisor: Any) -> None:
        """Tell the guest, in the shared page, how it is paged."""
        tables, views = self.make(hypervisor)
        domain = tables.domain
        numbers = 0 if self.translated else views.numbers
        told = (self.way, domain.first, domain.count, numbers, domain.refused.total())
        for word, value in zip((WAY_WORD, FIRST_WORD, COUNT_WORD, NUMBERS_WORD, REFUSED_WORD), told, strict=True):
            hypervisor.shared[self.calls.told_at + word] = value


class DirectCalls:
    """`TableCalls` of a guest with direct paging."""

    def __init__(self, technique: Direct, hypervisor: Any) -> None:
        from paravirt.para.tables import ShadowedTables

        self._technique = technique
        self._hypervisor = hypervisor
        self._before: TableCalls = ShadowedTables(hypervisor)
        self.tables: DirectTables | None = None
        self.views: DirectViews | None = None
        self.walker: TableWalker | None = None
        self.told_at = MACHINE_OFFSET // hypervisor.CONVENTION.word
        """Index of the first of the words by which the guest is told."""
        self.opened: dict[int, tuple[list[tuple[int, int, int]], bool]] = {}
        """By machine frame of an opened table: machine frame, index and entry of all that led to it, and whether it was
        pinned."""

    @property
    def _ready(self) -> DirectTables | None:
        return self.tables if self._technique.views is not None else None

    def _refuse(self, refused: Refused) -> int:
        assert self.tables is not None
        self.tables.domain.refused[refused.reason] += 1
        total = self.tables.domain.refused.total()  # the guest may have written there
        self._hypervisor.shared[self.told_at + REFUSED_WORD] = total
        self._settle()
        return -Status.REFUSED

    def _settle(self) -> None:
        if self._technique.views is not None:
            self._technique.views.settle()

    def _frame(self, physical: int) -> int:
        """Machine frame of a guest-physical address. Raises `Refused`."""
        assert self.tables is not None
        return self.tables.machine_frame(physical >> 12)

    # -- entries --------------------------------------------------------------------------------

    def update(self, updates: Sequence[tuple[int, int]]) -> int:
        """Validate and store entries, in order, up to the first that is refused."""
        tables = self._ready
        if tables is None:
            return self._before.update(updates)
        store, machine, count, done = tables.store, tables.domain.machine, tables.domain.count, 0
        first = tables.domain.base
        try:
            for pointer, value in updates:
                number = (pointer >> 12) - first
                if pointer & 7 or not 0 <= number < count:
                    self._settle()
                    return done or -Status.INVALID
                store(machine[number], pointer >> 3 & 511, value)
                done += 1
        except Refused as refused:
            status = self._refuse(refused)
            return done or status
        self._settle()
        return done

    def update_page(self, address: int, value: int) -> int:
        """Store the last-level entry of an address and forget its translation."""
        tables = self._ready
        if tables is None:
            return self._before.update_page(address, value)
        assert self.walker is not None
        found = self.walker.find(address)
        if found is None:
            return -Status.INVALID
        try:
            tables.store(*found, value)
        except Refused as refused:
            return self._refuse(refused)
        self._settle()
        return self.flush_page(address)

    def read(self, pointers: Sequence[int]) -> list[int] | int:
        """Entries as the guest would have written them."""
        tables = self._ready
        if tables is None:
            return self._before.read(pointers)
        if any(pointer & 7 for pointer in pointers):
            return -Status.INVALID
        try:
            return [tables.read(tables.machine_frame(pointer >> 12), pointer >> 3 & 511) for pointer in pointers]
        except Refused as refused:
            return self._refuse(refused)

    # -- tables ---------------------------------------------------------------------------------

    def pin(self, table: int, level: int) -> int:
        """Make a page a table, validated as a whole, until it is unpinned."""
        tables = self._ready
        if tables is None or table & 0xFFF:
            return self._before.pin(table, level)
        try:
            tables.pin(self._frame(table), level)
        except Refused as refused:
            return self._refuse(refused)
        self._settle()
        return 0

    def unpin(self, table: int) -> int:
        """Let it be something else when nothing uses it."""
        tables = self._ready
        if tables is None or table & 0xFFF:
            return self._before.unpin(table)
        try:
            tables.unpin(self._frame(table))
        except Refused as refused:
            return self._refuse(refused)
        self._settle()
        return 0

    def new_base(self, root: int, part: int = 0) -> int:
        """Validate and load a root; when all are there that a processor walks, it goes over to direct paging. Until
        then the first is kept, under shadow tables."""
        hypervisor, last = self._hypervisor, self._technique.forms.views.ROOTS - 1
        if part > last or root & 0xFFF or not hypervisor.is_root(root):
            return -Status.INVALID
        try:
            if self._ready is not None:
                assert self.views is not None
                self.views.load(self._frame(root), part)
            elif part < last:
                return self._before.new_base(root)
            else:
                self._technique.start(hypervisor, (*hypervisor.first_roots[:last], root))
        except Refused as refused:
            return self._refuse(refused)
        hypervisor.root_taken(root, part)
        self._settle()
        return 0

    def flush_page(self, address: int) -> int:
        """Forget one translation."""
        if self._ready is None:
            return self._before.flush_page(address)
        assert self.views is not None
        self.views.invalidate(address)
        return 0

    def flush_all(self) -> int:
        """Forget all translations."""
        if self._ready is None:
            return self._before.flush_all()
        assert self.views is not None
        self.views.flush_all()
        return 0

    # -- many entries of a table ----------------------------------------------------------------

    def open_table(self, table: int) -> int:
        """Every store is a call here."""
        return self._before.open_table(table) if self._ready is None else -Status.UNSUPPORTED

    def close_table(self, table: int) -> int:
        """Nothing was opened."""
        return self._before.close_table(table) if self._ready is None else -Status.UNSUPPORTED
