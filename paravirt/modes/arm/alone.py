"""What of an ARMv7 guest runs one instruction at a time: stores into code and page tables, watched pages.

Room: `paravirt/modes/arm`, a part of the hypervisor. How one instruction is made to run alone is `single`'s.
"""

from __future__ import annotations

from emulator.isa.arm import exceptions as x
from emulator.isa.arm.access import extent_a32, extent_t32
from emulator.isa.arm.exceptions import ArmException
from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.operation import Operation
from paravirt.modes.arm import debug
from paravirt.modes.arm.saved import ArmSaving
from paravirt.modes.arm.vcpu import USER


class ArmAlone(ArmSaving):
    """Of the hypervisor of an ARMv7 guest, what lets one instruction run alone."""

    def _begin_step(self) -> int:
        self._single.begin(self.vcpu.pc, self._registers.thumb)
        return 0

    def _executed(self, page: int) -> memoryview | None:
        """The bytes that execute in a page of the view in use."""
        physical = self.shadow.executed(page)
        if physical < 0:
            return None
        own = self.LAYOUT
        if physical >= own.window:
            return self.code.window_bytes()[physical - own.window :][:4096]
        if physical >= own.code:
            return self.code.copy_at(physical)
        at = physical - self.machine.memory.base
        return self.machine.memory.view[at : at + 4096]

    def _end_step(self) -> None:
        self._single.end()
        self.shadow.exposed = -1, -1
        while self.shadow.passing:
            self.shadow.drop_page(self.shadow.passing.pop() << 12)

    def _abandon_step(self) -> None:
        """What ran alone has raised an exception, or cannot be fetched: it comes again."""
        if self._stepping is None:
            return
        at, self._stepping = self._stepping[0], None
        if at is not None:
            self.shadow.drop(at)
            self.shadow.flush_tlb()
        self._end_step()
        if self._eager is not None:
            self._eager.follow()

    def _user_code_stored(self, frame: int) -> None:
        """User code stores into a frame that user code runs from: it may be its own."""
        pc, vcpu = self.vcpu.pc, self.vcpu
        if vcpu.level != USER:
            return
        for page in (pc & ~0xFFF, pc + 3 & 0xFFFF_F000):
            try:
                at = vcpu.offset_of(page)
            except ArchitecturalException:
                return
            if at >> 12 == frame:
                self._own_store, self._own_page = frame, page
                return

    # -- watchpoints ----------------------------------------------------------------------------

    def debug_changed(self) -> None:
        """A debug register was written."""
        if self._debug.changed():
            self._watch()
            self.shadow.reset()

    def _watch(self) -> None:
        """Other pages are watched than before."""
        self.shadow.watched = self._debug.watched
        self.vcpu.watch = self._watched_by_itself if self._debug.watched else None

    def _watched(self, address: int, write: bool) -> bool:
        """An access to a page with a watchpoint: False where an abort of the guest's own comes first. Where none fires,
        the page is mapped for this instruction."""
        vcpu = self.vcpu
        site, user = vcpu.pc, vcpu.level == USER
        if not user and self._in_fixup(site):
            site = self._site_of(site)
        prepared = None if user else self._prepare_instruction(site, self._fetch(site))
        as_user = user or (prepared is not None and prepared.operation is Operation.ACCESS_AS_USER)
        try:
            vcpu.walker.walk(address, write, user, False)
        except ArchitecturalException:
            return False
        code = vcpu.fetch(site, 4).ljust(4, b"\0")
        first, second = int.from_bytes(code[:2], "little"), int.from_bytes(code[2:], "little")
        extent = extent_t32(first, second) if self._registers.thumb else extent_a32(second << 16 | first)
        begin = extent.begins(vcpu.gpr, address)
        size = extent.size - (address - begin) if begin <= address < begin + extent.size else extent.size
        if self._debug.touches(address, size, write, as_user):
            self._debug.note(debug.WATCHPOINT)
            self._refuse(ArmException(x.DATA_ABORT, x.DEBUG_EVENT | (x.WRITE if write else 0), address))
            return True
        self.exits.count("access to a watched page", "step")
        if self._stepping is None:  # before the page is mapped: it may be the one that executes
            self._stepping = None, self._begin_step()
        self.shadow.passing.add(address >> 12)
        self.shadow.fill(address, write, False)
        if self._own_store >= 0:
            self._begin_own_store()
        return True

    def _watched_by_itself(self, address: int, size: int, write: bool, user: bool) -> None:
        """The hypervisor is about to access memory in the guest's place. Raises the abort of a watchpoint."""
        if self._debug.touches(address, size, write, user):
            self._debug.note(debug.WATCHPOINT)
            raise ArmException(x.DATA_ABORT, x.DEBUG_EVENT | (x.WRITE if write else 0), address)
