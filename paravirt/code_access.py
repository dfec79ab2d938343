"""Code that the guest reads or stores into while it executes from a copy: one instruction at a time from its own frame.

Room: `paravirt`, a part of the event loop. The views see such an access (`paravirt.mmu`); here the instruction under
the PC runs alone with the guest's own page in the place of the copy. How a processor is made to run one is the
instruction set's.
"""

from typing import Any, ClassVar

from emulator.engine.protocol import Engine
from emulator.isa.exceptions import ArchitecturalException
from paravirt.abi import Window
from paravirt.accounting import ExitTable
from paravirt.mmu.code import CodePages
from paravirt.mmu.eager import Eager
from paravirt.mmu.views import MemoryViews
from paravirt.vcpu import VirtualCpu

_WRITABLE = 2


class CodeAccess:
    """Of a hypervisor, what it does when data accesses meet code."""

    WINDOW: ClassVar[Window]
    LONGEST: ClassVar[int]

    engine: Engine
    exits: ExitTable
    vcpu: VirtualCpu
    shadow: MemoryViews
    code: CodePages
    _actions: dict[int, Any]
    _actions_by_page: dict[int, list[int]]
    _stepping: tuple[Any, int] | None
    _own_store: int
    _own_page: int
    _eager: Eager | None

    def _raise(self, fault: ArchitecturalException) -> None:
        """Deliver an exception to the guest."""
        raise NotImplementedError

    def _begin_step(self) -> int:
        """Have the engine come back after one instruction; returns whether the guest itself has asked for that."""
        raise NotImplementedError

    def _end_step(self) -> None:
        """The instruction is done, and the guest had not asked for steps."""
        raise NotImplementedError

    def _guest_step(self) -> None:
        """The instruction is done, and the guest steps as well: its debug exception follows."""
        raise NotImplementedError

    def _code_changed(self, page: int) -> None:
        for pc in self._actions_by_page.pop(page >> 12, ()):
            self._actions.pop(pc, None)

    def _entry_of(self, page: int) -> int:
        """Where the page of code at `page` is entered."""
        pc = self.vcpu.pc
        return pc if pc >> 12 == page >> 12 else page

    def _read_code(self, address: int) -> bool:
        """The guest reads code that executes from a copy: let it see its own bytes.

        A read from the page under the PC runs that one instruction from the guest's frame; any other maps the frame
        for reading until the page executes again (False: an ordinary fill).
        """
        frame = self.shadow.frame_of(address)
        page = self._page_executed_from(frame) if frame >= 0 else None
        if page is None:
            return False
        self._step_from_frame(page, frame, 0, "read of the executing page")
        return True

    def _code_stored(self, frame: int) -> None:
        page = self._page_executed_from(frame)
        if page is not None:
            self._own_store, self._own_page = frame, page

    def _page_executed_from(self, frame: int) -> int | None:
        """The page under the PC that executes from a copy of `frame`: the PC's own, or the next if the instruction may
        reach into it. Both must be there for it to complete."""
        pc = self.vcpu.pc
        for page in (pc & ~0xFFF, (pc + self.LONGEST - 1 & ~0xFFF) & self.WINDOW.last_address):
            if self.code.executes_from(page, frame):
                return page
        return None

    def _begin_own_store(self) -> None:
        """The guest stores into the page it executes from: run that one instruction from the frame itself."""
        frame, self._own_store = self._own_store, -1
        self._step_from_frame(self._own_page, frame, _WRITABLE, "store into the executing page")

    def _step_from_frame(self, page: int, frame: int, rights: int, what: str) -> None:
        """Execute one instruction of `page` from the guest's own frame."""
        try:
            at = self.shadow.expose(page, frame, rights != 0)
        except ArchitecturalException as fault:  # the page itself is gone since it was fetched from
            self._raise(fault)
            return
        self._stepping = at, self._begin_step() if self._stepping is None else self._stepping[1]  # it also stores
        self.engine.code_changed(page, 4096)
        self.exits.count(what, "step")

    def _begin_table_store(self) -> None:
        """The guest stores into a page table that its shadow follows eagerly: that one instruction runs alone."""
        if self._stepping is None:
            self._stepping = None, self._begin_step()
        self.exits.count("store into a page table", "step")

    def _abandon_table_store(self) -> None:
        """The store that was to run alone has raised an exception: it comes again."""
        if self._stepping is None or self._stepping[0] is not None or self._eager is None:
            return
        guest_steps = self._stepping[1]
        self._stepping = None
        if not guest_steps:
            self._end_step()
        self._eager.follow()

    def _end_own_store(self) -> None:
        """The instruction that ran alone is done."""
        assert self._stepping is not None
        at, guest_steps = self._stepping
        self._stepping = None
        if at is not None:
            self.shadow.drop(at)
            self.shadow.flush_tlb()
        if self._eager is not None:
            self._eager.follow()
        if guest_steps:
            self._guest_step()
        else:
            self._end_step()
