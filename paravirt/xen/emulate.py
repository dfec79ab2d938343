"""Privileged instructions of a Xen guest's kernel that its port leaves in place: they fault, and are done here.

Room: `paravirt/xen`. Xen emulates a few such instructions for every guest, and CPUID behind a prefix that is no
instruction. What is not among them is the guest's own fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from emulator.isa.x86 import msr
from paravirt.xen.access import NotMapped
from paravirt.xen.identity import identify
from paravirt.xen.vcpu import FS, GS

if TYPE_CHECKING:
    from iced_x86 import Instruction, UsedMemory

    from paravirt.xen.hypervisor import XenHypervisor

_FORCED_CPUID: Final = b"\x0f\x0bxen\x0f\xa2"
_INT1, _RDPMC = b"\xf1", b"\x0f\x33"
_MASK: Final = (1 << 64) - 1
_CR0: Final = 0x8005_0033
_EFER: Final = 0xD01
_TS: Final = 8
_CONSTANT: Final = {
    msr.IA32_EFER: _EFER,
    msr.IA32_PAT: msr.PAT_RESET,
    msr.IA32_APIC_BASE: 0xFEE0_0800,
    msr.IA32_MISC_ENABLE: 1,
    msr.IA32_BIOS_SIGN_ID: 0,
    msr.IA32_MCG_CAP: 0,
    msr.IA32_DEBUGCTL: 0,
}
"""Registers that read as this, and take only this."""
_FEATURES_ENABLES, _IDENTIFY_FAULTS = 0x140, 1
"""The MSR by which CPUID of user code is made to fault; PLATFORM_INFO says that it can be (SDM 4, table 2-2)."""
_CR4: Final = 0x620
_CR4_FSGSBASE: Final = 1 << 16
_CR4_KEPT: Final = _CR4_FSGSBASE | 0b1100  # DE and TSD
"""Bits of CR4 that a guest may choose; all others stay what they are, as Xen has it."""
_STACK_FAULT: Final = 12


def canonical(address: int) -> bool:
    """Whether the processor has such an address."""
    return address >> 47 in (0, 0x1FFFF)


class Emulator:
    """The emulation of one guest's privileged instructions."""

    def __init__(self, hypervisor: XenHypervisor) -> None:
        self._hypervisor = hypervisor
        self._vcpu = hypervisor.vcpu
        self._registers = hypervisor.machine.engine.registers
        self._gpr = self._registers.gpr
        self._known: dict[bytes, tuple[Callable[[Instruction], bool], Instruction, str] | None] = {}

    def _code(self, size: int) -> bytes:
        """The guest's code at RIP, as far as it is mapped; user code's by its own root."""
        vcpu, access = self._vcpu, self._hypervisor.access
        if vcpu.kernel_mode or vcpu.user_root == vcpu.kernel_root:
            return self._mapped_code(size)
        access.use_root(vcpu.user_root << 12)
        try:
            return self._mapped_code(size)
        finally:
            access.use_root(vcpu.kernel_root << 12)

    def _mapped_code(self, size: int) -> bytes:
        rip, access = self._registers.rip, self._hypervisor.access
        try:
            return access.read(rip, size)
        except NotMapped:
            try:
                return access.read(rip, min(size, 4096 - (rip & 4095)))
            except NotMapped:
                return b""

    def forced(self) -> bool:
        """CPUID behind Xen's prefix, done for kernel and user code."""
        if self._code(len(_FORCED_CPUID)) != _FORCED_CPUID:
            return False
        if self._vcpu.identify_faults and not self._vcpu.kernel_mode:
            self._registers.advance(len(_FORCED_CPUID) - 2)
            self._hypervisor.raise_exception(13, 0)
            return True
        gpr = self._gpr
        gpr[0], gpr[3], gpr[1], gpr[2] = identify(gpr[0] & 0xFFFF_FFFF, gpr[1] & 0xFFFF_FFFF)
        self._registers.advance(len(_FORCED_CPUID))
        self._hypervisor.exits.count("IDENTIFY_PROCESSOR", "forced")
        return True

    def undefined(self) -> bool:
        """What the engine calls undefined and is not: Xen's prefix, INT1 (a debug trap), RDPMC (a protection fault)."""
        if self.forced():
            return True
        code = self._code(2)
        if code[:1] == _INT1:
            self._registers.advance(1)
            self._hypervisor.raise_exception(1)
        elif code == _RDPMC:
            self._hypervisor.raise_exception(13, 0)
        else:
            return self._vcpu.cr4 & _CR4_FSGSBASE != 0 and self._access_base()
        self._hypervisor.exits.count("exception to the guest", "fault")
        return True

    def _access_base(self) -> bool:
        """RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE, of kernel and user code: the real CR4 never allows them, since the
        engine takes any base."""
        code = self._code(5)
        rex = code[1] if len(code) == 5 and code[1] >> 4 == 4 else 0
        length = 5 if rex else 4
        if code[:1] != b"\xf3" or code[length - 3 : length - 1] != b"\x0f\xae" or len(code) < length:
            return False
        form = code[length - 1]
        if form < 0xC0 or form & 0x20:
            return False
        segment, number = (GS if form & 8 else FS), form & 7 | (rex & 1) << 3
        mask = _MASK if rex & 8 else 0xFFFF_FFFF
        if not form & 0x10:
            self._gpr[number] = self._registers.segment_base(segment) & mask
        elif canonical(self._gpr[number] & mask):
            self._registers.set_segment_base(segment, self._gpr[number] & mask)
        else:
            self._hypervisor.raise_exception(13, 0)
            return True
        self._registers.advance(length)
        self._hypervisor.exits.count("SEGMENT_BASE", "emulated")
        return True

    def fault_of(self, error: int) -> int:
        """The vector of a protection fault with `error` at RIP: where the first address of the instruction that is none
        was to be reached through SS it is a stack fault, which an engine may not know (SDM 1, 3.3.7.1)."""
        from iced_x86 import InstructionInfoFactory, Register

        from emulator.isa.x86.decode import instruction_at

        code = self._code(15) if not error else b""
        instruction = instruction_at(code, self._registers.rip) if code else None
        if instruction is None:
            return 13
        for memory in InstructionInfoFactory().info(instruction).used_memory():
            address = self._address_of(memory)
            if address is not None and not canonical(address):
                by_stack = memory.base in (Register.RSP, Register.RBP)  # no prefix but FS and GS changes that
                return _STACK_FAULT if by_stack and memory.segment not in (Register.FS, Register.GS) else 13
        return 13

    def _address_of(self, memory: UsedMemory) -> int | None:
        """The linear address of an access in 64-bit mode; None where it cannot be told."""
        from iced_x86 import Register, RegisterExt

        address = memory.displacement
        for register, scale in ((memory.base, 1), (memory.index, memory.scale)):
            if register in (Register.RIP, Register.EIP):
                continue  # the displacement is the address then
            if register != Register.NONE:
                if not RegisterExt.is_gpr64(register):
                    return None
                address += self._gpr[RegisterExt.number(register)] * scale
        if memory.segment in (Register.FS, Register.GS):
            address += self._registers.segment_base(FS if memory.segment == Register.FS else GS)
        return int(address) & _MASK

    def privileged(self) -> bool:
        """The kernel's instruction at RIP, which faulted; False where that is the guest's own fault."""
        if not self._vcpu.kernel_mode:
            return self._user_mask()
        code = self._code(15)
        if code not in self._known:
            self._known[code] = self._prepare(code)
        known = self._known[code]
        if known is None:
            return False
        act, instruction, name = known
        if not act(instruction):
            return False
        self._registers.advance(len(instruction))
        self._hypervisor.exits.count(name, "emulated")
        return True

    def _user_mask(self) -> bool:
        """CLI and STI of user code that has I/O privilege."""
        if not self._vcpu.may_use_ports or self._code(1) not in (b"\xfa", b"\xfb"):
            return False
        self._registers.advance(1)
        self._hypervisor.exits.count("INTERRUPTS of user code", "emulated")
        return True

    def _prepare(self, code: bytes) -> tuple[Callable[[Instruction], bool], Instruction, str] | None:
        from iced_x86 import Code

        from emulator.isa.x86.decode import instruction_at

        instruction = instruction_at(code, self._registers.rip)
        if instruction is None:
            return None
        acts: dict[int, tuple[Callable[[Instruction], bool], str]] = {
            Code.RDMSR: (self._read_register, "READ_MSR"),
            Code.WRMSR: (self._write_register, "WRITE_MSR"),
            Code.MOV_R64_CR: (self._read_control, "READ_CONTROL"),
            Code.MOV_CR_R64: (self._write_control, "WRITE_CONTROL"),
            Code.MOV_R64_DR: (self._read_debug, "READ_DEBUG"),
            Code.MOV_DR_R64: (self._write_debug, "WRITE_DEBUG"),
            Code.CLTS: (self._clear_task_switched, "CLEAR_TASK_SWITCHED"),
            Code.WBINVD: (lambda _i: True, "WRITE_BACK_CACHES"),
            Code.INVD: (lambda _i: True, "INVALIDATE_CACHES"),
            Code.CLI: (self._mask, "DISABLE_INTERRUPTS"),
            Code.STI: (self._mask, "ENABLE_INTERRUPTS"),
            Code.HLT: (self._halt, "HALT"),
        }
        found = acts.get(instruction.code)
        return None if found is None else (found[0], instruction, found[1])

    # -- what each does: whether it may -----------------------------------------------------------

    def _read_register(self, _instruction: Instruction) -> bool:
        number, registers = self._gpr[1] & 0xFFFF_FFFF, self._registers
        if number in _CONSTANT:
            value = _CONSTANT[number]
        elif number == msr.IA32_FS_BASE:
            value = registers.segment_base(FS)
        elif number == msr.IA32_GS_BASE:
            value = registers.segment_base(GS)
        elif number == msr.IA32_KERNEL_GS_BASE:
            value = self._vcpu.gs_user
        elif number == msr.IA32_TIME_STAMP_COUNTER:
            value = self._hypervisor.machine.clock.now()
        elif number == msr.MSR_PLATFORM_INFO:
            value = 1 << 31
        elif number == _FEATURES_ENABLES:
            value = _IDENTIFY_FAULTS if self._vcpu.identify_faults else 0
        else:
            return False
        self._gpr[0], self._gpr[2] = value & 0xFFFF_FFFF, value >> 32
        return True

    def _write_register(self, _instruction: Instruction) -> bool:
        number = self._gpr[1] & 0xFFFF_FFFF
        value = self._gpr[2] << 32 & _MASK | self._gpr[0] & 0xFFFF_FFFF
        if number in _CONSTANT:
            return value == _CONSTANT[number] or number in (msr.IA32_BIOS_SIGN_ID, msr.IA32_MISC_ENABLE)
        if number == _FEATURES_ENABLES and not value & ~_IDENTIFY_FAULTS:
            self._vcpu.identify_faults = value != 0
            return True
        if not canonical(value):
            return False
        if number == msr.IA32_FS_BASE:
            self._registers.set_segment_base(FS, value)
        elif number == msr.IA32_GS_BASE:
            self._registers.set_segment_base(GS, value)
        elif number == msr.IA32_KERNEL_GS_BASE:
            self._vcpu.gs_user = value
        else:
            return False
        return True

    def _read_control(self, instruction: Instruction) -> bool:
        from iced_x86 import RegisterExt

        vcpu, number = self._vcpu, RegisterExt.number(instruction.op1_register)
        values = {
            0: _CR0 | (_TS if vcpu.task_switched else 0),
            2: self._hypervisor.host.words[vcpu.info_at + 16 >> 3],
            3: vcpu.kernel_root << 12,
            4: vcpu.cr4 | _CR4,
        }
        if number not in values:
            return False
        self._gpr[RegisterExt.number(instruction.op0_register)] = values[number]
        return True

    def _write_control(self, instruction: Instruction) -> bool:
        from iced_x86 import RegisterExt

        vcpu, number = self._vcpu, RegisterExt.number(instruction.op0_register)
        value = self._gpr[RegisterExt.number(instruction.op1_register)]
        if number == 0:
            if (value ^ _CR0) & ~_TS:
                return False
            self._hypervisor.set_task_switched(value & _TS != 0)
        elif number == 2:
            self._hypervisor.host.words[vcpu.info_at + 16 >> 3] = value
        elif number == 4:
            vcpu.cr4 = value & _CR4_KEPT
        else:
            return False
        return True

    def _read_debug(self, instruction: Instruction) -> bool:
        from iced_x86 import RegisterExt

        number = RegisterExt.number(instruction.op1_register)
        self._gpr[RegisterExt.number(instruction.op0_register)] = self._vcpu.debug[number & 7]
        return True

    def _write_debug(self, instruction: Instruction) -> bool:
        from iced_x86 import RegisterExt

        from paravirt.xen.calls.segments import set_debug

        number = RegisterExt.number(instruction.op0_register)
        return set_debug(self._vcpu, number & 7, self._gpr[RegisterExt.number(instruction.op1_register)])

    def _clear_task_switched(self, _instruction: Instruction) -> bool:
        self._hypervisor.set_task_switched(False)
        return True

    def _mask(self, _instruction: Instruction) -> bool:
        """The real flag means nothing: events are masked elsewhere. Without I/O privilege it is a fault."""
        return self._vcpu.may_use_ports

    def _halt(self, _instruction: Instruction) -> bool:
        self._registers.advance(1)
        self._hypervisor.block()
        self._registers.advance(-1)
        return True
