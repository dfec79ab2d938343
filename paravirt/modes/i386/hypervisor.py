"""The hypervisor of 32-bit x86 guests: what differs from 64-bit ones, and virtual-8086 mode.

Room: `paravirt/modes/i386`. Kernel and user code run at real CPL 3 in compatibility mode, in the four-level tables
that every x86 guest has; while user code is in virtual-8086 mode the real processor leaves long mode and walks the
same tables without their top level. Fixups lie in the middle of the guest's addresses, so each root is looked at.
"""

from emulator.board.linux_boot import EntryState
from emulator.engine.exit import SYSENTER, Exit
from emulator.engine.protocol import Capabilities
from emulator.engine.x86 import I386Engine
from emulator.errors import GuestFault
from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from emulator.isa.x86.decode import instruction_at, row_of
from emulator.isa.x86.descriptors import FLAT_DATA, FLAT_LIMIT, KERNEL_CODE_32
from emulator.isa.x86.msr import IA32_SYSENTER_CS, IA32_SYSENTER_EIP, IA32_SYSENTER_ESP
from emulator.isa.x86.processor import INVALID_OPCODE, Fault
from emulator.isa.x86.transfer32 import sysenter
from paravirt import abi, layout
from paravirt.hypervisor import Action, Prepared
from paravirt.modes.i386.descriptors import DescriptorCopy32
from paravirt.modes.i386.shadow import I386Shadow
from paravirt.modes.i386.vcpu import I386VirtualCpu
from paravirt.modes.x86.hypervisor import X86Hypervisor
from paravirt.operations.i386 import PREPARE, pop_flags
from paravirt.translator import Hypercall

_GP = 13
_MASK = 0xFFFF_FFFF


class I386Hypervisor(X86Hypervisor):
    """Runs one 32-bit guest."""

    WINDOW = abi.I386
    WORD = 4
    FLAT = False
    LAYOUT = layout.X86_64
    DESCRIPTORS = DescriptorCopy32
    engine: I386Engine
    vcpu: I386VirtualCpu
    shadow: I386Shadow

    def _make_cpu(self, able: Capabilities) -> None:
        self.vcpu = I386VirtualCpu(self._registers, self.machine.memory.view, self.shared)
        self.vcpu.on_task_switch = self._task_switched
        self.shadow = I386Shadow(
            self.engine, self.machine.memory, self.vcpu, self.LAYOUT, name_changes=able.names_changes
        )

    def enter(self, state: EntryState) -> None:
        """Set the virtual CPU up as the boot protocol says: flat segments, paging as CR0 and CR4 have it."""
        vcpu = self.vcpu
        vcpu.cr0, vcpu.cr4, vcpu.efer, vcpu.cr3 = state.cr0, state.cr4, state.efer, state.cr3
        vcpu.choose_walker()
        super().enter(state)
        vcpu.set_segment(1, state.cs, 0, FLAT_LIMIT, KERNEL_CODE_32)
        for index in (0, 2, 3):
            vcpu.set_segment(index, state.ds, 0, FLAT_LIMIT, FLAT_DATA)

    # -- operations at a site -------------------------------------------------------------------

    def _prepare_instruction(self, pc: int, code: bytes) -> Prepared | None:
        instruction = instruction_at(code, pc & _MASK, self.vcpu.code_bits)
        row = row_of(instruction) if instruction is not None else None
        if instruction is None or row is None:
            return None
        return Prepared(row.operation, len(instruction), PREPARE[row.operation](self, instruction))

    def _finish_hypercall(self, call: Hypercall) -> Action:
        if call.operation is not Operation.WRITE_FLAGS:
            return super()._finish_hypercall(call)

        def write_flags() -> None:
            stepped = self._registers.trap_flag
            pop_flags(self, 4)
            self._popped(call, stepped)

        return write_flags

    def _general_protection(self, exit_: Exit) -> None:
        vcpu = self.vcpu
        if vcpu.virtual_8086:  # the real processor has looked at IOPL itself
            self._refuse(Fault(_GP, exit_.error))
            return
        if vcpu.level == 0 and vcpu.linear != vcpu.rip:
            self._perform_in_segment(exit_)
            return
        super()._general_protection(exit_)

    def _perform_in_segment(self, exit_: Exit) -> None:
        """Kernel code in a segment that has a base: actions are kept by address, so here none is kept."""
        prepared = self._prepare_instruction(self.vcpu.rip, self.vcpu.fetch(self.vcpu.rip))
        if prepared is None:
            self._refuse(Fault(_GP, exit_.error))
            return
        self.exits.count(prepared.operation.name, "trap")
        try:
            prepared.action()
        except Fault as fault:
            self._raise(fault)

    # -- events ---------------------------------------------------------------------------------

    def _system_call(self, exit_: Exit) -> None:
        vcpu = self.vcpu
        if self._in_shadow:
            self._end_shadow()
        self.exits.count("SYSTEM_CALL", "fault")
        self._event("system call", vcpu.gpr[0], 0, vcpu.rip)
        msrs = vcpu.msrs
        try:
            if exit_.vector != SYSENTER:
                raise Fault(INVALID_OPCODE)
            code, stack, target = (
                msrs.get(number, 0) for number in (IA32_SYSENTER_CS, IA32_SYSENTER_ESP, IA32_SYSENTER_EIP)
            )
            sysenter(vcpu, code, stack, target)
        except Fault as fault:
            self._raise(fault)

    # -- modes ----------------------------------------------------------------------------------

    def _switch(self, view: int) -> None:
        virtual = self.vcpu.virtual_8086
        if virtual != self.shadow.three_levels:
            self.shadow.three_levels = virtual
            self.real_controls_changed()
        super()._switch(view)

    def real_controls_changed(self, *, switched: bool = False) -> None:
        """Carry the guest's floating-point bits into the real control registers, in the mode that user code is in."""
        if not self.shadow.three_levels:
            super().real_controls_changed(switched=switched)
            return
        kept = r.CR0_MP | r.CR0_EM | r.CR0_TS | r.CR0_NE
        cr0 = r.CR0_PE | r.CR0_PG | r.CR0_WP | r.CR0_ET | (self.vcpu.cr0 & kept) | (r.CR0_TS if switched else 0)
        self.vcpu.real_switched = not self._early and cr0 & r.CR0_TS != 0
        cr4 = r.CR4_PAE | r.CR4_TSD | (self.vcpu.cr4 & (r.CR4_OSFXSR | r.CR4_OSXMMEXCPT))
        self.engine.set_control(cr0, cr4, r.EFER_NXE)

    def _format_restored(self) -> None:
        self.vcpu.choose_walker()
        self.shadow.speak_as_saved()

    def paging_changed(self) -> None:
        """CR0.PG, CR4.PAE or CR4.PSE were written: the guest's tables have another format."""
        self.vcpu.choose_walker()
        self.shadow.change_format()
        if self.vcpu.cr0 & r.CR0_PG:
            self._check_window()

    def root_loaded(self) -> None:
        """CR3 was written."""
        super().root_loaded()
        self._check_window()

    def _task_switched(self) -> None:
        self.real_controls_changed()
        self.descriptors_changed()
        if self.vcpu.cr0 & r.CR0_PG:
            self.shadow.load_root()

    def invalidate(self, address: int) -> None:
        """INVLPG."""
        self.vcpu.forget_translations()
        self.shadow.invalidate(address)

    def _fill_window(self, address: int) -> bool:
        self._check_window()
        return super()._fill_window(address)

    def _check_window(self) -> None:
        """The window is at an address that the guest must not use. Raises `GuestFault` where it does."""
        base = self.WINDOW.base
        if self.shadow.maps(base, self.WINDOW.size):
            raise GuestFault(
                f"the guest maps memory at {base:#x}-{base + self.WINDOW.size - 1:#x}, which is the hypervisor's window"
            )
