"""The two views of a MIPS32 guest's memory, filled page by page as its segments and its TLB say.

Room: `paravirt/modes/mips`; fulfils `paravirt.mmu.views.MemoryViews` over an engine that takes translations from its
caller. No page is writable and executable in any view: kernel code executes from copies, user code from its own frame.
KSEG0 and KSEG1 are filled by neighbourhoods, since nothing but what a frame is used for decides their rights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emulator.engine.mips import EXECUTE, READ, SUPERVISOR, USER, WRITE, MipsEngine
from emulator.isa.mips import registers as r
from emulator.isa.mips.exceptions import MipsException
from emulator.memory import GuestMemory
from paravirt.mmu.views import ACTIVE_CODE, KERNEL_VIEW, MAY_BE_CODE, PLAIN, USER_CODE, USER_VIEW, CodeSource

if TYPE_CHECKING:
    from paravirt.layout import Layout
    from paravirt.modes.mips.vcpu import MipsVirtualCpu

_REAL = {KERNEL_VIEW: SUPERVISOR, USER_VIEW: USER}
_NEIGHBOURS = 64
"""Pages of KSEG0 that are filled together."""
_PAGE = 4096
_VIEW = _PAGE - 1
"""Bits of a mapping's name that are the view's."""


@dataclass(frozen=True, slots=True)
class MipsViewState:
    """Both views, but for their tables, which are memory."""

    view: int
    kinds: bytes
    mapped: tuple[tuple[int, int], ...]
    """Mappings outside of KSEG0 and KSEG1 and the frame of each, or -1."""
    local: tuple[int, ...]
    fills: int
    prefilled: int


class MipsViews:
    """Both views of one guest."""

    SAVED = MipsViewState

    def __init__(self, engine: MipsEngine, memory: GuestMemory, vcpu: MipsVirtualCpu, layout: Layout) -> None:
        self._engine = engine
        self._vcpu = vcpu
        self._open_bus = layout.open_bus
        self._frames = memory.size >> 12
        self._memory = memory.view
        self._engine_bytes = engine.frame_at
        self._devices = vcpu.board.device_space
        self.kinds = bytearray(self._frames)
        """Of every frame, as `paravirt.mmu.views` names them."""
        self._mapped: dict[int, set[int]] = {}
        """Frame -> its mappings outside of KSEG0 and KSEG1, each the page's address with the real view in the low
        bits."""
        self._frame_of_page: dict[int, int] = {}
        """The other way; copies are under their guest frame."""
        self._local: set[int] = set()
        """Mappings that hold in the current address space only."""
        self._code: CodeSource
        self.view = KERNEL_VIEW
        self.fills = self.prefilled = 0
        self.window: dict[int, tuple[int, int]] = {}
        """Pages of the hypervisor's window in the kernel view: engine-physical address and rights."""
        self.fixups: tuple[int, int, int] = (0, 0, 0)
        """Guest-virtual addresses of the first fixup and behind the last, and the engine-physical one. They lie over
        memory of the guest's: its kernel executes what is there from the window, and loads and stores its own."""

    def attach(self, code: CodeSource) -> None:
        """Connect to the code pages."""
        self._code = code

    def use(self, view: int) -> None:
        """Run in `view`."""
        self.view = view
        self._vcpu.registers.mode = _REAL[view]

    # -- filling --------------------------------------------------------------------------------

    def fill(self, address: int, write: bool, fetch: bool) -> None:
        """Make `address` accessible as the guest's segments and TLB allow; raises `MipsException`."""
        page = address & ~0xFFF
        user = self.view == USER_VIEW
        if fetch and not user and self._holds_fixups(page):
            self.fills += 1
            first, _end, own = self.fixups
            self._map(page, -1, own + page - first, EXECUTE, True)
            return
        physical, writable, everywhere = self._vcpu.translate(address, write, user)
        self.fills += 1
        frame = physical >> 12
        if frame >= self._frames:
            self._fill_device(page, frame, fetch, everywhere)
        elif fetch:
            self._fill_code(page, frame, everywhere)
        else:
            self._fill_data(page, frame, write, writable, everywhere)

    def _holds_fixups(self, page: int) -> bool:
        """Whether fixups lie in a page. There are none where the guest's own image has code there (`bt.tactics`)."""
        return self.fixups[0] <= page < self.fixups[1] and self._code.has_fixups

    def _fill_device(self, page: int, frame: int, fetch: bool, everywhere: bool) -> None:
        """A device, or nothing at all. Nothing can be executed from there."""
        if fetch:
            raise MipsException(r.IBE, 0, page)
        at = frame << 12
        backed = any(start <= at < start + size for start, size in self._devices)
        self._map(page, -1, at if backed else self._open_bus, READ | WRITE, everywhere)

    def _fill_code(self, page: int, frame: int, everywhere: bool) -> None:
        if self.view == USER_VIEW:
            self.revoke_writers(frame)
            self.kinds[frame] = USER_CODE
            self._map(page, frame, frame << 12, READ | EXECUTE, everywhere)
            return
        self._forget(SUPERVISOR, page)
        copy = self._code.activate(page, frame, page | SUPERVISOR)
        # Where nothing was rewritten the copy may be read as well: constants often lie between functions.
        same = self._engine_bytes(copy) == self._memory[frame << 12 : frame + 1 << 12]
        self._map(page, frame, copy, READ | EXECUTE if same else EXECUTE, everywhere)

    def _fill_data(self, page: int, frame: int, write: bool, writable: bool, everywhere: bool) -> None:
        kind = self.kinds[frame]
        if write and kind != PLAIN:
            self.written(frame)
            kind = self.kinds[frame]
        free = kind == PLAIN or write
        if r.KSEG0 <= page < r.KSEG2:
            if free and kind == PLAIN and not write and not self.fixups[0] <= page < self.fixups[1]:
                self._fill_neighbours(page, frame)
            else:
                self._forget(SUPERVISOR, page)
                self._engine.unmap_page(SUPERVISOR, page)
                self._engine.map_page(SUPERVISOR, page, frame << 12, READ | WRITE if free else READ)
            return
        self._map(page, frame, frame << 12, READ | WRITE if writable and free else READ, everywhere)

    def _fill_neighbours(self, page: int, frame: int) -> None:
        """Fill the plain frames around one in KSEG0 or KSEG1."""
        engine, kinds = self._engine, self.kinds
        first = frame & ~(_NEIGHBOURS - 1)
        base = page - (frame << 12)
        for number in range(first, min(first + _NEIGHBOURS, self._frames)):
            if kinds[number] == PLAIN and not self.fixups[0] <= base + (number << 12) < self.fixups[1]:
                engine.map_page(SUPERVISOR, base + (number << 12), number << 12, READ | WRITE)
                self.prefilled += 1

    def _map(self, page: int, frame: int, physical: int, rights: int, everywhere: bool) -> None:
        """Enter a page that is in no view yet, or with other rights or another place."""
        view = _REAL[self.view]
        self._forget(view, page)
        self._engine.unmap_page(view, page)
        self._engine.map_page(view, page, physical, rights)
        token = page | view
        self._frame_of_page[token] = frame
        if frame >= 0:
            self._mapped.setdefault(frame, set()).add(token)
        if not everywhere:
            self._local.add(token)

    def _forget(self, view: int, page: int) -> None:
        """A mapping is about to go: nothing is known of it any more."""
        token = page | view
        frame = self._frame_of_page.pop(token, -1)
        if frame >= 0:
            self._mapped[frame].discard(token)
        self._local.discard(token)

    # -- what was mapped goes -------------------------------------------------------------------

    def space_changed(self) -> None:
        """Another ASID: mappings of the old one go."""
        if not self._local:
            return
        for token in tuple(self._local):
            view, page = token & _VIEW, token & ~_VIEW
            self._forget(view, page)
            self._engine.map_page(view, page, 0, 0)
        self._engine.flush_tlb()

    def translation_replaced(self, start: int, size: int) -> None:
        """An entry of the TLB changed: mappings of its addresses go."""
        if size > 1 << 16:
            tokens = [token for token in self._frame_of_page if start <= token & ~_VIEW < start + size]
        else:
            tokens = [page | view for page in range(start, start + size, _PAGE) for view in (SUPERVISOR, USER)]
        for token in tokens:
            if token in self._frame_of_page:
                self.drop(token)

    def drop(self, at: int) -> None:
        """Remove one mapping."""
        view, page = at & _VIEW, at & ~_VIEW
        self._forget(view, page)
        self._engine.unmap_page(view, page)

    def flush_tlb(self) -> None:
        """Nothing: a page that is taken out of a view is taken out of the TLB."""

    def revoke_writers(self, number: int) -> None:
        """Take every writable mapping of a frame away."""
        engine = self._engine
        for base in (r.KSEG0, r.KSEG1):
            if engine.mapped(SUPERVISOR, base + (number << 12)) & WRITE:
                engine.unmap_page(SUPERVISOR, base + (number << 12))
        for token in tuple(self._mapped.get(number, ())):
            if engine.mapped(token & _VIEW, token & ~_VIEW) & WRITE:
                self.drop(token)

    def written(self, number: int) -> None:
        """A frame is about to be written: code in it leaves use."""
        kind = self.kinds[number]
        if kind == USER_CODE:
            for token in tuple(self._mapped.get(number, ())):
                if self._engine.mapped(token & _VIEW, token & ~_VIEW) & EXECUTE:
                    self.drop(token)
            self._engine.frame_changed(number << 12, _PAGE)
        elif kind == ACTIVE_CODE:
            self._code.deactivate(number)
        self.kinds[number] = PLAIN

    def set_kind(self, number: int, kind: int) -> None:
        """Note what a frame is."""
        self.kinds[number] = kind

    def mark_code(self, first: int, last: int) -> None:
        """Frames may hold kernel code: they are not filled with their neighbours."""
        for number in range(max(first, 0), min(last + 1, self._frames)):
            self.kinds[number] = MAY_BE_CODE

    def frame_of(self, address: int) -> int:
        """The frame that the guest's kernel has mapped at `address`, or -1."""
        try:
            frame = self._vcpu.translate(address, False, False)[0] >> 12
        except MipsException:
            return -1
        return frame if frame < self._frames else -1

    def expose(self, address: int, frame: int, writable: bool) -> int:
        """Not needed: an instruction cache shows no store before software says so, and reads are filled on the spot."""
        raise NotImplementedError

    # -- state ----------------------------------------------------------------------------------

    @property
    def memories(self) -> dict[str, memoryview]:
        """Their tables by name: a word a page."""
        return {name: self._engine.view_memory(real) for name, real in (("kernel", SUPERVISOR), ("user", USER))}

    @property
    def state(self) -> MipsViewState:
        """All but the tables."""
        mapped, local = tuple(self._frame_of_page.items()), tuple(sorted(self._local))
        return MipsViewState(self.view, bytes(self.kinds), mapped, local, self.fills, self.prefilled)

    def restore(self, state: MipsViewState) -> None:
        """Take up an earlier state, whose tables are in place. Raises `ValueError` for one of another machine."""
        names = {name for name, _ in state.mapped}
        ok = (
            state.view in _REAL
            and len(state.kinds) == self._frames
            and max(state.kinds, default=0) <= USER_CODE
            and all(0 <= name < 1 << 32 and name & _VIEW in (SUPERVISOR, USER) for name in names)
            and all(-1 <= frame < self._frames for _, frame in state.mapped)
            and names.issuperset(state.local)
        )
        if not ok:
            raise ValueError("the views of the saved machine are none of a machine of this size")
        self.view, self.fills, self.prefilled = state.view, state.fills, state.prefilled
        self.kinds[:] = state.kinds
        self._frame_of_page, self._local = dict(state.mapped), set(state.local)
        self._mapped = {}
        for name, frame in state.mapped:
            if frame >= 0:
                self._mapped.setdefault(frame, set()).add(name)

    # -- the hypervisor's window ----------------------------------------------------------------

    def install_window(self) -> None:
        """Map the hypervisor's window in the kernel view."""
        for page, (physical, rights) in self.window.items():
            self._engine.map_page(SUPERVISOR, page, physical, rights)

    def guard_window(self, page: int, writable: bool) -> None:
        """Let the guest's kernel store into a page of the window, or see it when it does."""
        physical, _rights = self.window[page]
        rights = READ | WRITE if writable else READ
        if self._engine.mapped(SUPERVISOR, page) != physical | rights:
            self._engine.unmap_page(SUPERVISOR, page)
            self._engine.map_page(SUPERVISOR, page, physical, rights)

    def is_open(self, page: int) -> bool:
        """Whether the guest's kernel may store into a page of the window unseen."""
        return bool(self._engine.mapped(SUPERVISOR, page) & WRITE)
