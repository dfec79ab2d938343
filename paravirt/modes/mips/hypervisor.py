"""The hypervisor of MIPS32 guests: what coprocessor 0, the software TLB and branch delays add to the event loop.

Room: `paravirt/modes/mips`. The guest's kernel runs in the real supervisor mode and its user code in user mode, each in
a view of its own, so that neither a privilege change nor an address space costs the other its translations.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import ClassVar

from emulator.board.malta_boot import EntryState
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.mips import DEBUG_BREAKPOINT, READ, WRITE
from emulator.isa.exceptions import ArchitecturalException, ProcessorShutdown
from emulator.isa.mips import registers as r
from emulator.isa.mips.exceptions import MipsException, deliver
from emulator.isa.mips.table import TABLE
from emulator.isa.operation import Operation
from emulator.machine import EndKind, Outcome
from paravirt import abi, layout
from paravirt.hypervisor import Action, Handlers, Prepared
from paravirt.mmu.views import KERNEL_VIEW
from paravirt.modes.mips.saved import MipsSaving
from paravirt.modes.mips.vcpu import KERNEL_LEVEL, USER_LEVEL, MipsVirtualCpu
from paravirt.modes.mips.views import MipsViews
from paravirt.operations.mips import PREPARE
from paravirt.translator import Hypercall
from paravirt.words import words

_UNMAPPED_CODE = r.KSEG0


class MipsHypervisor(MipsSaving):
    """Runs one MIPS32 guest."""

    WINDOW: ClassVar = abi.MIPS32
    LAYOUT: ClassVar = layout.MIPS32
    USER_LEVEL: ClassVar = USER_LEVEL
    WITHIN_AN_INSTRUCTION: ClassVar = frozenset({ExitKind.MISS})
    CPU: ClassVar[type[MipsVirtualCpu]] = MipsVirtualCpu

    vcpu: MipsVirtualCpu
    shadow: MipsViews

    @property
    def _word_order(self) -> str:
        """The engine's."""
        return str(self.machine.engine.byte_order)

    def _make(self) -> None:
        engine = self.machine.engine
        self._registers = engine.registers
        registers = memoryview(mmap.mmap(-1, 4096))
        page = words(registers, 4, self._word_order)
        self.vcpu = self.CPU(engine, self.machine.memory, self.machine.board, self.shared, page)
        self.shadow = MipsViews(engine, self.machine.memory, self.vcpu, self.LAYOUT)
        self.vcpu.on_timer_changed = self._device_written
        self.vcpu.on_space_changed = self.shadow.space_changed
        self.vcpu.on_translation_replaced = self.shadow.translation_replaced
        window, own = self.WINDOW, self.LAYOUT.window
        self._pages = {self.LAYOUT.tables: registers}
        self.shadow.window = {
            window.shared_page: (own + window.fixup_size, READ | WRITE),
            abi.MIPS_REGISTERS: (self.LAYOUT.tables, READ | WRITE),
        }
        self.shadow.fixups = window.fixups, window.fixups + window.fixup_size, own
        engine.use_views(True)
        engine.registers.set_cp0("HWREna", 0)

    def _own_memory(self) -> Mapping[int, memoryview]:
        return self._pages

    def _handlers(self) -> Handlers:
        # A store into code needs no single step: the architecture shows it to the instruction cache when told to.
        self.code.on_store = lambda _frame: None
        return {ExitKind.MISS: self._miss, ExitKind.FAULT: self._fault}

    def enter(self, state: EntryState) -> None:
        """Set the virtual CPU up as YAMON leaves it."""
        vcpu, registers = self.vcpu, self._registers
        for number in range(32):
            vcpu.gpr[number] = 0
        for number, value in state.gpr:
            vcpu.gpr[number] = value
        registers.set_coprocessor(False, False)
        vcpu.status = 0
        vcpu.moved = tuple((start, start + size, physical - start) for start, size, physical in state.mapped)
        registers.jump(state.pc)
        self.shadow.use(KERNEL_VIEW)
        self.shadow.install_window()

    # -- exits ----------------------------------------------------------------------------------

    def _miss(self, exit_: Exit) -> None:
        """A page that the view under way does not have, or not with this right."""
        address, access = exit_.address, exit_.error
        if address == self.WINDOW.shared_page and self.vcpu.level == KERNEL_LEVEL and access != 2:
            # A store that may enable a waiting interrupt: it is looked at when the block is over.
            self.shadow.guard_window(address, True)
            self.exits.count("interrupt flag with an interrupt waiting", "fill")
            return
        try:
            self.shadow.fill(address, access == 1, access == 2)
        except MipsException as fault:
            exit_.refused, exit_.vector, exit_.error = True, fault.vector, fault.error or 0
            return
        self.exits.count("code page" if access == 2 and self.vcpu.level == KERNEL_LEVEL else "page", "fill")

    def _fault(self, exit_: Exit) -> None:
        code = exit_.vector
        pc = self._registers.pc
        if code == r.CPU and not exit_.error:
            if self.vcpu.level == KERNEL_LEVEL:
                if self._perform(pc) if pc >= _UNMAPPED_CODE else self._perform_for_user(pc):
                    return
            elif self.vcpu.status & r.STATUS_CU0 and self._perform_for_user(pc):
                return
        elif code == r.CPU and exit_.error == 1 and self.vcpu.follow_coprocessor():
            self.exits.count("floating point enabled", "fault")  # by a fixup: the processor follows when it matters
            self._registers.jump(self._registers.restart_address)
            return
        elif code == r.RI and self._perform_for_user(pc):
            return
        elif code == DEBUG_BREAKPOINT:
            raise ProcessorShutdown(f"SDBBP at {pc:#x} enters Debug Mode, and no debugger is there")
        self._refuse(MipsException(code, exit_.error, exit_.address))

    def _prepare_instruction(self, pc: int, code: bytes) -> Prepared | None:
        word = int.from_bytes(code, "big" if self.machine.engine.byte_order == "big" else "little")
        row = TABLE.row_of(word)
        if row is None:
            return None
        return Prepared(row.operation, 4, PREPARE[row.operation](self, word))

    def _hypercall(self, call: Hypercall) -> Action:
        perform, vcpu = super()._hypercall(call), self.vcpu
        if call.operation is not Operation.WRITE_SYSTEM_REGISTER:
            return perform

        def act() -> None:
            perform()
            if vcpu.level == USER_LEVEL and vcpu.pc == call.resume:  # user code sees no fixup
                vcpu.pc = call.site + 4

        return act

    def _fetch(self, pc: int) -> bytes:
        word = self.vcpu.fetch_word(pc)
        return word.to_bytes(4, "big" if self.machine.engine.byte_order == "big" else "little")

    # -- events for the guest -------------------------------------------------------------------

    def _inject(self, fault: ArchitecturalException) -> None:
        deliver(self.vcpu, fault.vector, fault.error or 0, fault.address)

    def _take_interrupt(self) -> None:
        self._event("interrupt", self.vcpu.cause >> 8 & 0xFF, 0, self._registers.restart_address)
        deliver(self.vcpu, r.INT)

    def _cannot_deliver(self) -> None:
        """The guest's kernel may enable interrupts without an exit: see it when it does, if that lets one in."""
        if self.vcpu.interrupt_requested:
            self.shadow.guard_window(self.WINDOW.shared_page, False)

    def _interrupt_waits(self) -> None:
        """Look when the block is over, if the interrupt may come or is about to be enabled."""
        if self.vcpu.interrupt_requested and self.shadow.is_open(self.WINDOW.shared_page):
            self.engine.set_deadline(self.engine.progress + 1)

    def _line_changed(self, level: bool) -> None:
        self.vcpu.lines_changed()
        if level:
            self.engine.set_deadline(self.engine.progress + 1)

    def _device_written(self) -> None:
        super()._device_written()
        if self.board.intr:
            self.engine.set_deadline(self.engine.progress + 1)

    def halted(self) -> None:
        """WAIT: the guest sleeps until a line is raised."""
        if not self.shared[0]:
            self.end(Outcome(EndKind.HALTED, detail="halted with interrupts disabled"))
            return
        self._wait_for_interrupt()
