"""The x86-64 reference: the guest at full privilege on the same machine, unmodified.

Room: `emulator/native`. Privileged instructions execute in the engine itself; events that the engine hands
up (exceptions, software interrupts, SYSCALL) are delivered by the architectural semantics on the real registers.
"""

from emulator.board.linux_boot import EntryState
from emulator.board.pc import Pc
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.x86 import X86Engine
from emulator.errors import GuestFault
from emulator.isa.x86 import registers as r
from emulator.isa.x86.delivery import interrupt, raise_exception, software_interrupt, undefined_or
from emulator.isa.x86.identity import identify
from emulator.isa.x86.msr import IA32_MISC_ENABLE
from emulator.isa.x86.processor import Fault
from emulator.isa.x86.segments import port_permitted
from emulator.isa.x86.transfer import syscall
from emulator.isa.x86.walk import FRAME_MASK, GuestContext, LinearMemory
from emulator.machine import EndKind, Machine, Outcome
from emulator.native.cpu import Handlers, NativeCpu

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_EFER, _STAR, _LSTAR, _CSTAR, _FMASK = 0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084
_CODE64, _DATA = 0xA09B00, 0xC09300
_FLAT = 0xFFFF_FFFF
_DB, _PF = 1, 14
_FETCH = 2
_LONG_CODE = 1 << 21
"""Of a code segment's attributes: 64-bit code."""
_LOOK_AGAIN = 2
"""Blocks until the interrupt flag is looked at again while an interrupt waits for it: the next block's beginning."""
_WITH_ERROR = frozenset({8, 10, 11, 12, 13, 14, 17})


class X86NativeCpu(NativeCpu, LinearMemory):
    """The real processor as a `Processor` of the semantics, and the driver of a reference run."""

    WITHIN_AN_INSTRUCTION = frozenset({ExitKind.PORT_READ, ExitKind.PORT_WRITE})
    IDENTIFY = staticmethod(identify)
    CODE = _CODE64
    """Attributes of the code segment at the entry."""
    engine: X86Engine
    board: Pc

    def __init__(self, machine: Machine) -> None:
        self.context = GuestContext()
        LinearMemory.__init__(self, machine.memory.view, self.context)
        NativeCpu.__init__(self, machine)
        self.registers = self.engine.registers
        self.gpr = self.registers.gpr
        self._stepping = False

    def _handlers(self) -> Handlers:
        return {
            ExitKind.FAULT: self._fault,
            ExitKind.SOFTWARE_INTERRUPT: self._software_interrupt,
            ExitKind.SYSTEM_CALL: self._system_call,
            ExitKind.PORT_READ: self._port_read,
            ExitKind.PORT_WRITE: self._port_write,
            ExitKind.IDENTIFY: self._identify,
            ExitKind.TIME_STAMP: self._time_stamp,
            ExitKind.HALT: self._halt,
            ExitKind.UNBACKED: self._unbacked,
        }

    # -- the processor as the semantics see it --------------------------------------------------

    @property
    def rip(self) -> int:
        """The instruction pointer."""
        return self.registers.rip

    @rip.setter
    def rip(self, value: int) -> None:
        self.registers.rip = value & _MASK

    @property
    def pc(self) -> int:
        """RIP."""
        return self.registers.rip

    @property
    def level(self) -> int:
        """The real privilege level."""
        return self.registers.privilege

    @property
    def rflags(self) -> int:
        """The real flags."""
        return self.registers.rflags

    @rflags.setter
    def rflags(self, value: int) -> None:
        self.registers.rflags = value

    @property
    def cpl(self) -> int:
        """The real privilege level."""
        return self.registers.privilege

    def set_privilege(self, cpl: int) -> None:
        """Change the real privilege level."""
        self.registers.privilege = cpl

    def task_switched(self, cr3: int) -> None:
        """Long mode switches no tasks."""
        raise NotImplementedError

    def segment(self, index: int) -> tuple[int, int, int, int]:
        """The real segment register."""
        return self.registers.segment(index)

    def set_segment(self, index: int, selector: int, base: int, limit: int, attributes: int) -> None:
        """Load the real segment register."""
        self.registers.set_segment(index, selector, base, limit, attributes)

    @property
    def cr0(self) -> int:
        """CR0."""
        return self.registers.control(0)

    @property
    def cr2(self) -> int:
        """CR2."""
        return self.registers.cr2

    @cr2.setter
    def cr2(self, value: int) -> None:
        self.registers.cr2 = value

    @property
    def cr4(self) -> int:
        """CR4."""
        return self.registers.control(4)

    @property
    def efer(self) -> int:
        """EFER."""
        return self.registers.msr(_EFER)

    @property
    def star(self) -> int:
        """STAR."""
        return self.registers.msr(_STAR)

    @property
    def lstar(self) -> int:
        """LSTAR."""
        return self.registers.msr(_LSTAR)

    @property
    def cstar(self) -> int:
        """CSTAR."""
        return self.registers.msr(_CSTAR)

    @property
    def fmask(self) -> int:
        """FMASK."""
        return self.registers.msr(_FMASK)

    @property
    def gdt_base(self) -> int:
        """Base of GDTR."""
        return self.registers.table(0)[0]

    @property
    def gdt_limit(self) -> int:
        """Limit of GDTR."""
        return self.registers.table(0)[1]

    @property
    def idt_base(self) -> int:
        """Base of IDTR."""
        return self.registers.table(1)[0]

    @property
    def idt_limit(self) -> int:
        """Limit of IDTR."""
        return self.registers.table(1)[1]

    # -- a run ----------------------------------------------------------------------------------

    def enter(self, state: EntryState) -> None:
        """Set the processor up as the boot protocol says."""
        registers = self.registers
        for number in range(16):
            self.gpr[number] = 0
        self.gpr[6], self.gpr[4] = state.rsi, state.rsp
        self.engine.set_root(state.cr3)
        self.engine.set_control(state.cr0, state.cr4, state.efer)
        registers.set_table(0, state.gdt_base, state.gdt_limit)
        registers.set_table(1, 0, 0)
        registers.set_segment(1, state.cs, 0, _FLAT, self.CODE)
        for index in (0, 2, 3):
            registers.set_segment(index, state.ds, 0, _FLAT, _DATA)
        for index in (4, 5, 6, 7):
            registers.set_segment(index, 0, 0, 0, 0)
        registers.privilege = 0
        # As after a reset, and as the virtual CPU has it: without fast strings a kernel patches other code in.
        self.engine.write_msr(IA32_MISC_ENABLE, 1)
        registers.rflags = state.rflags
        registers.rip = state.rip

    def _look(self) -> None:
        """Take up what the tables are and what a walk depends on."""
        self.context.root = self.registers.control(3) & FRAME_MASK
        self.context.write_protect = self.registers.control(0) & r.CR0_WP != 0
        self.context.no_execute = self.registers.msr(_EFER) & r.EFER_NXE != 0
        self.forget_translations()

    def _offer_interrupt(self) -> None:
        """An interrupt waits: take it if the flag allows, otherwise look again at the next block."""
        registers = self.registers
        if self._stepping or not registers.rflags & r.FLAG_IF:
            self.engine.set_deadline(self.engine.progress + _LOOK_AGAIN)
        elif registers.interrupt_shadow:
            self._stepping = True  # one instruction, then the shadow is over
            registers.interrupt_shadow = False
            registers.rflags |= r.FLAG_TF
        else:
            vector = self.board.acknowledge()
            self._event("interrupt", vector, 0, self.rip)
            interrupt(self, vector)

    def _raise(self, fault: Fault) -> None:
        self._event("exception", fault.vector, fault.error or 0, self.rip, fault.address)
        raise_exception(self, fault)

    # -- exits ----------------------------------------------------------------------------------

    def _fault(self, exit_: Exit) -> None:
        vector = exit_.vector
        if self._stepping:
            self._stepping = False
            self.registers.rflags &= ~r.FLAG_TF
            if vector == _DB:
                return
        other = undefined_or(self, self.fetch_bytes(self.rip, 2, self.cpl == 3)) if vector == 6 else None
        if other is not None:
            self._raise(other)
            return
        error = exit_.error if vector in _WITH_ERROR else None
        self._raise(Fault(vector, error, exit_.address if vector == _PF else 0))

    def _software_interrupt(self, exit_: Exit) -> None:
        self._event("software interrupt", exit_.vector, 0, self.rip)
        software_interrupt(self, exit_.vector, exit_.length)

    def _system_call(self, exit_: Exit) -> None:
        self._event("system call", self.gpr[0], 0, self.rip)
        try:
            syscall(self, exit_.length)
        except Fault as fault:
            self._raise(fault)

    def _port_read(self, exit_: Exit) -> None:
        if self._port_refused(exit_):
            exit_.refused = True
        else:
            exit_.value = self.board.ports.read(exit_.port, exit_.size)

    def _port_write(self, exit_: Exit) -> None:
        if self._port_refused(exit_):
            exit_.refused = True
            return
        self.board.ports.write(exit_.port, exit_.size, exit_.value)
        self._device_written()

    def _port_refused(self, exit_: Exit) -> bool:
        """IOPL, then the I/O permission bitmap of the TSS (SDM 1, 19.5.2)."""
        if self.cpl <= self.registers.rflags >> 12 & 3:
            return False
        return not port_permitted(self, exit_.port, exit_.size)

    def _identify(self, _exit: Exit) -> None:
        # CPUID serialises: what was written through one address must now execute through another. The engine misses
        # stores through a mapping without execute right once it has translated code from the page.
        self.engine.flush_code()
        gpr = self.gpr
        gpr[0], gpr[3], gpr[1], gpr[2] = self.IDENTIFY(gpr[0] & 0xFFFF_FFFF, gpr[1] & 0xFFFF_FFFF)

    def _time_stamp(self, _exit: Exit) -> None:
        value = self.machine.clock.now() & _MASK
        self.gpr[0], self.gpr[2] = value & 0xFFFF_FFFF, value >> 32

    def _unbacked(self, exit_: Exit) -> None:
        """Nothing is at a physical address. Where the processor shown to guests has no such address, an entry of the
        tables with it is a page fault; a fetch from the bus gives all ones, which is no instruction."""
        user = self.cpl == 3
        try:
            if exit_.error == _FETCH:
                self._walker.walk(self.rip, False, user, True)
                raise Fault(6)
            self._walk_accesses(user)
        except Fault as fault:
            self._raise(fault)

    def _walk_accesses(self, user: bool) -> None:
        """Walk all that the instruction accesses, for the page fault that its tables say; raises it."""
        from emulator.isa.x86.accesses import accesses
        from emulator.isa.x86.decode import instruction_at

        rip, long = self.rip, self.segment(1)[3] & _LONG_CODE != 0

        def base(segment: int) -> int:
            return self.registers.segment_base(segment) if segment > 3 or not long else 0

        instruction = instruction_at(self.fetch_bytes(rip, 15, user), rip, 64 if long else 32)
        if instruction is not None:
            for access in accesses(instruction, self.gpr.__getitem__, base):
                for address in (access.address, access.address + access.size - 1 & _MASK):
                    self._walker.walk(address, access.write, user, False)
        raise GuestFault(f"the guest's instruction at {rip:#x} accesses physical memory that is not there")

    def _halt(self, _exit: Exit) -> None:
        if not self.registers.rflags & r.FLAG_IF:
            self.end(Outcome(EndKind.HALTED, detail="halted with interrupts disabled"))
            return
        self.registers.interrupt_shadow = False
        if self._stepping:
            self._stepping = False
            self.registers.rflags &= ~r.FLAG_TF
        self._wait_for_interrupt()

    @property
    def state(self) -> tuple[object, ...]:
        """Everything the guest can see of its processor, as a plain value (see `VirtualCpu.state`)."""
        registers = self.registers
        return (
            tuple(self.gpr),
            self.rip,
            self.rflags,
            self.cpl,
            (self.cr0, self.cr2, registers.control(3), self.cr4, self.efer),
            (self.star, self.lstar, self.cstar, self.fmask, registers.msr(0xC000_0102)),
            (self.gdt_base, self.gdt_limit, self.idt_base, self.idt_limit),
            tuple(self.segment(index) for index in range(8)),
        )
