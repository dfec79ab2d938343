"""What the operations of x86 ask of the hypervisor: the `Context` of `paravirt.operations.x86`.

Room: `paravirt/modes/x86`. An operation changes the virtual CPU; what that means for memory, the real CPU, the devices
and the clock is done here.
"""

from emulator.board.pc import Pc
from emulator.engine.x86 import X86Engine, X86Registers
from emulator.isa.x86 import registers as r
from emulator.machine import EndKind, Outcome
from paravirt.hypervisor import Hypervisor
from paravirt.modes.x86.copies import ShownTime
from paravirt.modes.x86.descriptors import DescriptorCopy
from paravirt.modes.x86.returns import QuickReturns
from paravirt.modes.x86.shadow import X86Shadow
from paravirt.modes.x86.vcpu import X86VirtualCpu

_MASK = 0xFFFF_FFFF_FFFF_FFFF


class X86Requests(Hypervisor):
    """Of the hypervisor of an x86 guest, what operations reach."""

    engine: X86Engine
    board: Pc
    vcpu: X86VirtualCpu
    shadow: X86Shadow
    descriptors: DescriptorCopy
    returns: QuickReturns | None = None
    """How IRETQ is done where exits are dear."""
    _registers: X86Registers
    _early: bool
    """The engine cannot have floating point fault: user code is told before it runs."""
    _guarded: bool
    """Translated code is made execute-only by a protection key."""
    _shown_time: ShownTime | None
    """Virtual time as it is shown without an exit, where it is."""
    _first_step: int
    """Where a fixup whose POPF began the guest's steps leads back to: no step ends there; -1: nowhere."""
    _in_shadow: bool
    """One instruction runs by a real trap flag before a waiting interrupt may be delivered."""

    def shadow_begins(self) -> None:
        """STI: one more instruction runs before an interrupt that waits is delivered."""
        if self.board.intr and not self._registers.trap_flag:
            self._hold_crossings()
            self._in_shadow = True
            self._registers.rflags |= r.FLAG_TF

    def halted(self) -> None:
        """HLT: time passes to the next interrupt."""
        if not self.vcpu.interrupts_enabled:
            self.end(Outcome(EndKind.HALTED, detail="halted with interrupts disabled"))
            return
        self._wait_for_interrupt()
        if self._shown_time is not None:
            self._shown_time.look()

    def _hold_crossings(self) -> None:
        """User code is entered next by the hypervisor."""

    def root_loaded(self) -> None:
        """CR3 was written."""
        self._hold_crossings()
        self.shadow.load_root()

    def translations_changed(self) -> None:
        """Every translation goes."""
        self._hold_crossings()
        self.vcpu.forget_translations()
        self.shadow.flush_all()

    def real_controls_changed(self, *, switched: bool = False) -> None:
        """Carry the guest's floating-point bits into the real control registers. `switched`: TS is set in any case."""
        self._hold_crossings()
        vcpu = self.vcpu
        kept = r.CR0_MP | r.CR0_EM | r.CR0_TS | r.CR0_NE
        cr0 = r.CR0_PE | r.CR0_PG | r.CR0_WP | r.CR0_ET | (vcpu.cr0 & kept) | (r.CR0_TS if switched else 0)
        vcpu.real_switched = not self._early and cr0 & r.CR0_TS != 0
        cr4 = r.CR4_PAE | r.CR4_TSD | (vcpu.cr4 & (r.CR4_OSFXSR | r.CR4_OSXMMEXCPT))
        self.engine.set_control(cr0, cr4, r.EFER_LME | r.EFER_LMA | r.EFER_NXE | r.EFER_SCE)
        if self._guarded:
            self.engine.guard_code()

    def descriptors_changed(self) -> None:
        """A descriptor-table register was loaded."""
        self.descriptors.reload(self._view_level)

    def invalidate(self, address: int) -> None:
        """INVLPG."""
        self.vcpu.forget_translations()
        if not (address + 0x8000_0000_0000) >> 48 & 0xFFFF:
            self.shadow.invalidate(address)

    def read_port(self, port: int, size: int) -> int:
        """IN by a planted trap."""
        return self.board.ports.read(port, size)

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT, however it arrived."""
        self.board.ports.write(port, size, value)
        self._device_written()

    def time_stamp(self) -> int:
        """Virtual nanoseconds."""
        if self._shown_time is not None:
            return self._shown_time.read()
        return self.machine.clock.now() & _MASK
