"""The i386 reference: a 32-bit guest at full privilege on the same machine, in protected mode with its own paging.

Room: `emulator/native`. As `x86`, and with SYSENTER; walks follow the mode that the guest has chosen by CR0 and CR4.
"""

from emulator.engine.exit import SYSENTER, Exit
from emulator.engine.x86 import I386Engine
from emulator.isa.x86 import registers as r
from emulator.isa.x86.descriptors import KERNEL_CODE_32
from emulator.isa.x86.identity import identify_32
from emulator.isa.x86.msr import IA32_SYSENTER_CS, IA32_SYSENTER_EIP, IA32_SYSENTER_ESP
from emulator.isa.x86.processor import INVALID_OPCODE, Fault
from emulator.isa.x86.transfer32 import sysenter
from emulator.isa.x86.walk import AnyWalker
from emulator.isa.x86.walk32 import LegacyWalker, PaeWalker, Unpaged
from emulator.machine import Machine
from emulator.native.x86 import X86NativeCpu

_MASK = 0xFFFF_FFFF


class I386NativeCpu(X86NativeCpu):
    """The real processor in 32-bit protected mode."""

    IDENTIFY = staticmethod(identify_32)
    CODE = KERNEL_CODE_32
    engine: I386Engine

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        memory = machine.memory.view
        self._legacy = LegacyWalker(memory, self.context)
        self._pae = PaeWalker(memory, self.context)
        self._unpaged = Unpaged()

    def _look(self) -> None:
        super()._look()
        self.context.root = self.registers.control(3)
        self.use_walker(self._choose())

    def _choose(self) -> AnyWalker:
        """The walker of the mode that the processor is in."""
        if not self.registers.control(0) & r.CR0_PG:
            return self._unpaged
        cr4 = self.registers.control(4)
        if cr4 & r.CR4_PAE:
            return self._pae
        self._legacy.large_pages = cr4 & r.CR4_PSE != 0
        return self._legacy

    def task_switched(self, cr3: int) -> None:
        """CR0.TS, and with paging the new root."""
        cr0 = self.cr0 | r.CR0_TS
        self.engine.set_control(cr0, self.cr4, self.efer)
        if cr0 & r.CR0_PG:
            self.engine.set_root(cr3)
            self.context.root = cr3
            self.forget_translations()

    def _system_call(self, exit_: Exit) -> None:
        self._event("system call", self.gpr[0], 0, self.rip)
        read = self.engine.read_msr
        try:
            if exit_.vector != SYSENTER:
                raise Fault(INVALID_OPCODE)
            sysenter(self, read(IA32_SYSENTER_CS), read(IA32_SYSENTER_ESP), read(IA32_SYSENTER_EIP))
        except Fault as fault:
            self._raise(fault)
