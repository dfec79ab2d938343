"""What each sensitive operation of x86-64 does to a virtual CPU.

Room: `paravirt/operations`. One entry per `Operation`; each makes, from a decoded instruction, an
action that performs it and moves RIP. However an operation arrives (fault, planted trap, hypercall),
this is where it ends. Actions raise `Fault` for what the guest did wrong. They know a `Hypervisor`
only by the few things named in `Context`.
"""

from collections.abc import Callable
from typing import Protocol

from iced_x86 import Code, Instruction, OpKind, Register, RegisterExt

from emulator.isa.operation import Operation
from emulator.isa.x86 import msr as m
from emulator.isa.x86 import registers as r
from emulator.isa.x86.identity import identify
from emulator.isa.x86.processor import Fault
from emulator.isa.x86.segments import lar, load_ldt, load_segment, load_task_register, lsl, verr, verw
from emulator.isa.x86.transfer import far_call, far_jump, far_return, iret, sysret
from paravirt.operations.operands import (
    address_reader,
    operand_reader,
    operand_writer,
    register_reader,
    register_writer,
)
from paravirt.vcpu import VirtualCpu

Action = Callable[[], None]
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_HOLE = 0x8000_0000_0000
_GP, _UD = 13, 6


class Context(Protocol):
    """What the operations need of the hypervisor."""

    vcpu: VirtualCpu

    def shadow_begins(self) -> None:
        """STI: the next instruction still runs before an interrupt may come."""
        ...

    def halted(self) -> None:
        """The guest waits for an interrupt; RIP is behind the instruction."""
        ...

    def root_loaded(self) -> None:
        """CR3 was written."""
        ...

    def translations_changed(self) -> None:
        """CR0.WP, EFER.NXE or CR4.PGE changed: all translations go."""
        ...

    def real_controls_changed(self) -> None:
        """CR0's and CR4's floating-point bits changed."""
        ...

    def descriptors_changed(self) -> None:
        """GDTR, LDTR, TR or IDTR changed."""
        ...

    def invalidate(self, address: int) -> None:
        """INVLPG."""
        ...

    def read_port(self, port: int, size: int) -> int: ...

    def write_port(self, port: int, size: int, value: int) -> None: ...

    def time_stamp(self) -> int:
        """Virtual time-stamp counter."""
        ...


Prepare = Callable[[Context, Instruction], Action]
PREPARE: dict[Operation, Prepare] = {}
"""The handlers: how to make the action for an instruction that stands for an operation."""


def handles(operation: Operation) -> Callable[[Prepare], Prepare]:
    """Register the handler of an operation."""

    def register(prepare: Prepare) -> Prepare:
        PREPARE[operation] = prepare
        return prepare

    return register


def _kernel_only(vcpu: VirtualCpu) -> None:
    if vcpu.level:
        raise Fault(_GP, 0)


def _operand_size(instruction: Instruction) -> int:
    """Operand size in bytes of a register or memory operand that follows the operand-size prefix."""
    for operand in range(instruction.op_count):
        if instruction.op_kind(operand) == OpKind.REGISTER:
            register = instruction.op_register(operand)
            if RegisterExt.is_gpr(register):
                return RegisterExt.size(register)
    return 2


# -- flags ------------------------------------------------------------------------------------------


@handles(Operation.DISABLE_INTERRUPTS)
def _cli(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        if vcpu.level > vcpu.iopl:
            raise Fault(_GP, 0)
        vcpu.interrupts_enabled = False
        vcpu.advance(length)

    return action


@handles(Operation.ENABLE_INTERRUPTS)
def _sti(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        if vcpu.level > vcpu.iopl:
            raise Fault(_GP, 0)
        was = vcpu.interrupts_enabled
        vcpu.interrupts_enabled = True
        vcpu.advance(length)
        if not was:
            context.shadow_begins()

    return action


def _stack_width(instruction: Instruction) -> int:
    return 2 if instruction.code in (Code.PUSHFW, Code.POPFW) else 8


@handles(Operation.READ_FLAGS)
def _pushf(context: Context, instruction: Instruction) -> Action:
    vcpu, length, size = context.vcpu, len(instruction), _stack_width(instruction)

    def action() -> None:
        top = vcpu.gpr[4] - size & _MASK
        vcpu.write(top, size, vcpu.rflags & ~(r.FLAG_RF | r.FLAG_VM))
        vcpu.gpr[4] = top
        vcpu.advance(length)

    return action


_POPF_KERNEL = r.FLAGS_STATUS | r.FLAG_TF | r.FLAG_IF | r.FLAG_DF | r.FLAG_IOPL | r.FLAG_NT | r.FLAG_AC | r.FLAG_ID


def pop_flags(context: Context, size: int) -> None:
    """POPF of 2 or 8 bytes, RIP left alone; what it may change goes by CPL and IOPL (SDM 2, POPF)."""
    vcpu = context.vcpu
    top = vcpu.gpr[4]
    value = vcpu.read(top, size)
    mask = _POPF_KERNEL & (0xFFFF if size == 2 else _MASK)
    if vcpu.level:
        mask &= ~r.FLAG_IOPL if vcpu.level <= vcpu.iopl else ~(r.FLAG_IOPL | r.FLAG_IF)
    vcpu.rflags = vcpu.rflags & ~(mask | r.FLAG_RF) | value & mask | 2
    vcpu.gpr[4] = top + size & _MASK


@handles(Operation.WRITE_FLAGS)
def _popf(context: Context, instruction: Instruction) -> Action:
    vcpu, length, size = context.vcpu, len(instruction), _stack_width(instruction)

    def action() -> None:
        pop_flags(context, size)
        vcpu.advance(length)

    return action


@handles(Operation.SET_ACCESS_CHECK)
def _no_smap(_context: Context, _instruction: Instruction) -> Action:
    return _undefined


def _undefined() -> None:
    """The processor shown to the guest does not have this instruction."""
    raise Fault(_UD)


for _absent in (
    Operation.MONITOR_WAIT,
    Operation.INVALIDATE_CONTEXT,
    Operation.READ_PROCESSOR_ID,
    Operation.READ_EXTENDED_CONTROL_REGISTER,
    Operation.WRITE_EXTENDED_CONTROL_REGISTER,
    Operation.READ_PROTECTION_KEYS,
    Operation.WRITE_PROTECTION_KEYS,
    Operation.ENTER_HYPERVISOR,
    Operation.SAVE_SUPERVISOR_STATE,
    Operation.RETURN_FROM_MANAGEMENT_MODE,
    Operation.MANAGE_SHADOW_STACK,
    Operation.CONTROL_PLATFORM,
    Operation.READ_SEGMENT_BASE,
    Operation.WRITE_SEGMENT_BASE,
):
    PREPARE[_absent] = _no_smap


# -- transfers --------------------------------------------------------------------------------------


@handles(Operation.RETURN_FROM_EXCEPTION)
def _iret(context: Context, instruction: Instruction) -> Action:
    vcpu = context.vcpu
    size = {Code.IRETW: 2, Code.IRETD: 4}.get(instruction.code, 8)

    def action() -> None:
        iret(vcpu, size)

    return action


_FAR_RETURN_SIZES = {
    Code.RETFW: 2,
    Code.RETFW_IMM16: 2,
    Code.RETFD: 4,
    Code.RETFD_IMM16: 4,
    Code.RETFQ: 8,
    Code.RETFQ_IMM16: 8,
}


@handles(Operation.FAR_RETURN)
def _far_return(context: Context, instruction: Instruction) -> Action:
    vcpu, size = context.vcpu, _FAR_RETURN_SIZES[instruction.code]
    release = instruction.immediate16 if instruction.op_count else 0
    return lambda: far_return(vcpu, size, release)


def _far_pointer(context: Context, instruction: Instruction) -> tuple[Callable[[], tuple[int, int]], int]:
    """Reads selector and offset of a far transfer's operand; also gives the operand size."""
    vcpu = context.vcpu
    kind = instruction.op_kind(0)
    if kind in (OpKind.FAR_BRANCH16, OpKind.FAR_BRANCH32):
        size = 2 if kind == OpKind.FAR_BRANCH16 else 4
        selector = instruction.far_branch_selector
        offset = instruction.far_branch16 if size == 2 else instruction.far_branch32
        return lambda: (selector, offset), size
    size = {
        Code.JMP_M1616: 2, Code.CALL_M1616: 2, Code.JMP_M1632: 4, Code.CALL_M1632: 4,
    }.get(instruction.code, 8)  # fmt: skip
    address = address_reader(vcpu, instruction)

    def pointer() -> tuple[int, int]:
        at, user = address(), vcpu.level == 3
        return vcpu.read(at + size & _MASK, 2, user), vcpu.read(at, size, user)

    return pointer, size


@handles(Operation.FAR_JUMP)
def _far_jump(context: Context, instruction: Instruction) -> Action:
    pointer, _size = _far_pointer(context, instruction)
    vcpu = context.vcpu
    return lambda: far_jump(vcpu, *pointer())


@handles(Operation.FAR_CALL)
def _far_call(context: Context, instruction: Instruction) -> Action:
    pointer, size = _far_pointer(context, instruction)
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        selector, offset = pointer()
        far_call(vcpu, selector, offset, size, length)

    return action


@handles(Operation.RETURN_FROM_SYSTEM_CALL)
def _sysret(context: Context, instruction: Instruction) -> Action:
    vcpu = context.vcpu
    if instruction.code in (Code.SYSEXITD, Code.SYSEXITQ):
        return _undefined
    size = 8 if instruction.code == Code.SYSRETQ else 4

    def action() -> None:
        sysret(vcpu, size)

    return action


@handles(Operation.SYSTEM_CALL)
def _sysenter(_context: Context, _instruction: Instruction) -> Action:
    return _undefined


@handles(Operation.SWAP_GS)
def _swapgs(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    registers = vcpu.registers

    def action() -> None:
        _kernel_only(vcpu)
        base = registers.segment_base(5)
        registers.set_segment_base(5, vcpu.kernel_gs_base)
        vcpu.kernel_gs_base = base
        vcpu.advance(length)

    return action


@handles(Operation.HALT)
def _hlt(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        _kernel_only(vcpu)
        vcpu.advance(length)
        context.halted()

    return action


# -- control and debug registers --------------------------------------------------------------------


_CR0_KEPT = r.CR0_PE | r.CR0_MP | r.CR0_EM | r.CR0_TS | r.CR0_ET | r.CR0_NE | r.CR0_WP | r.CR0_AM | r.CR0_NW
_CR0_KEPT |= r.CR0_CD | r.CR0_PG
_CR4_KNOWN = r.CR4_TSD | r.CR4_DE | r.CR4_PSE | r.CR4_PAE | r.CR4_MCE | r.CR4_PGE | r.CR4_PCE
_CR4_KNOWN |= r.CR4_OSFXSR | r.CR4_OSXMMEXCPT


@handles(Operation.READ_CONTROL_REGISTER)
def _read_control(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    number = RegisterExt.number(instruction.op_register(1))
    write = register_writer(vcpu, instruction.op_register(0))
    if number not in (0, 2, 3, 4, 8):
        return _undefined
    name = f"cr{number}"

    def action() -> None:
        _kernel_only(vcpu)
        write(getattr(vcpu, name))
        vcpu.advance(length)

    return action


def write_cr0(context: Context, value: int) -> None:
    """CR0 <- value: long mode keeps PE and PG set; reserved bits and NW without CD are #GP."""
    vcpu = context.vcpu
    if value >> 32 or not value & r.CR0_PE or not value & r.CR0_PG:
        raise Fault(_GP, 0)
    if value & r.CR0_NW and not value & r.CR0_CD:
        raise Fault(_GP, 0)
    old, value = vcpu.cr0, value & _CR0_KEPT | r.CR0_ET
    vcpu.cr0 = value
    if (old ^ value) & r.CR0_WP:
        context.translations_changed()
    if (old ^ value) & (r.CR0_TS | r.CR0_EM | r.CR0_MP | r.CR0_NE):
        context.real_controls_changed()


def write_cr4(context: Context, value: int) -> None:
    """CR4 <- value: features CPUID does not show, and clearing PAE, are #GP."""
    vcpu = context.vcpu
    if value & ~_CR4_KNOWN or not value & r.CR4_PAE:
        raise Fault(_GP, 0)
    old = vcpu.cr4
    vcpu.cr4 = value
    if (old ^ value) & (r.CR4_PGE | r.CR4_PSE):
        context.translations_changed()
    if (old ^ value) & (r.CR4_OSFXSR | r.CR4_OSXMMEXCPT):
        context.real_controls_changed()


@handles(Operation.WRITE_CONTROL_REGISTER)
def _write_control(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    number = RegisterExt.number(instruction.op_register(0))
    read = register_reader(vcpu, instruction.op_register(1))

    def cr0() -> None:
        _kernel_only(vcpu)
        write_cr0(context, read())
        vcpu.advance(length)

    def cr2() -> None:
        _kernel_only(vcpu)
        vcpu.cr2 = read()
        vcpu.advance(length)

    def cr3() -> None:
        _kernel_only(vcpu)
        value = read()
        if value >> 36:
            raise Fault(_GP, 0)
        vcpu.cr3 = value
        context.root_loaded()
        vcpu.advance(length)

    def cr4() -> None:
        _kernel_only(vcpu)
        write_cr4(context, read())
        vcpu.advance(length)

    def cr8() -> None:
        _kernel_only(vcpu)
        if read() >> 4:
            raise Fault(_GP, 0)
        vcpu.cr8 = read()
        vcpu.advance(length)

    return {0: cr0, 2: cr2, 3: cr3, 4: cr4, 8: cr8}.get(number, _undefined)


@handles(Operation.CLEAR_TASK_SWITCHED)
def _clts(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        _kernel_only(vcpu)
        if vcpu.cr0 & r.CR0_TS:
            vcpu.cr0 &= ~r.CR0_TS
            context.real_controls_changed()
        vcpu.advance(length)

    return action


@handles(Operation.READ_MACHINE_STATUS_WORD)
def _smsw(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    write = operand_writer(vcpu, instruction, 0, 2)

    def action() -> None:
        write(vcpu.cr0)
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_MACHINE_STATUS_WORD)
def _lmsw(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    read = operand_reader(vcpu, instruction, 0, 2)

    def action() -> None:
        _kernel_only(vcpu)
        value = read() & 0xF
        write_cr0(context, vcpu.cr0 & ~0xE | value | vcpu.cr0 & 1)
        vcpu.advance(length)

    return action


@handles(Operation.READ_DEBUG_REGISTER)
def _read_debug(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    number = RegisterExt.number(instruction.op_register(1))
    write = register_writer(vcpu, instruction.op_register(0))
    if number > 7:
        return _undefined
    index = number + 2 if number in (4, 5) else number

    def action() -> None:
        _kernel_only(vcpu)
        write(vcpu.debug[index])
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_DEBUG_REGISTER)
def _write_debug(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    number = RegisterExt.number(instruction.op_register(0))
    read = register_reader(vcpu, instruction.op_register(1))
    if number > 7:
        return _undefined
    index = number + 2 if number in (4, 5) else number

    def action() -> None:
        _kernel_only(vcpu)
        value = read()
        if index == 6:
            value = value & 0xE00F | 0xFFFF_0FF0
        elif index == 7:
            value = value & 0xFFFF_23FF | 0x400
        vcpu.debug[index] = value
        vcpu.advance(length)

    return action


# -- model-specific registers -----------------------------------------------------------------------

_FS_BASE, _GS_BASE, _KERNEL_GS = 0xC000_0100, 0xC000_0101, 0xC000_0102
_STAR, _LSTAR, _CSTAR, _FMASK, _EFER = 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0080
_NAMED = {_STAR: "star", _LSTAR: "lstar", _CSTAR: "cstar", _FMASK: "fmask", _KERNEL_GS: "kernel_gs_base"}
_PLAIN_MSRS = {
    m.IA32_SYSENTER_CS: 0,
    m.IA32_SYSENTER_ESP: 0,
    m.IA32_SYSENTER_EIP: 0,
    m.IA32_PAT: 0x0007_0406_0007_0406,
    m.IA32_DEBUGCTL: 0,
    m.IA32_MISC_ENABLE: 1,
    m.IA32_BIOS_SIGN_ID: 0,
    m.IA32_PLATFORM_ID: 0,
}
"""Registers that only keep what was written, with their reset values."""
_CANONICAL = frozenset({_LSTAR, _CSTAR, _FS_BASE, _GS_BASE, _KERNEL_GS, m.IA32_SYSENTER_ESP, m.IA32_SYSENTER_EIP})


def read_msr(vcpu: VirtualCpu, number: int) -> int:
    """The value of an MSR; #GP for one this processor does not have."""
    if number in _NAMED:
        return int(getattr(vcpu, _NAMED[number]))
    if number == _EFER:
        return vcpu.efer
    if number in (_FS_BASE, _GS_BASE):
        return vcpu.registers.segment_base(number - _FS_BASE + 4)
    if number in _PLAIN_MSRS:
        return vcpu.msrs.get(number, _PLAIN_MSRS[number])
    raise Fault(_GP, 0)


def write_msr(context: Context, number: int, value: int) -> None:
    """Write an MSR; #GP for one this processor does not have, or a value it refuses."""
    vcpu = context.vcpu
    if number in _CANONICAL and (value + _HOLE) >> 48 & 0xFFFF:
        raise Fault(_GP, 0)
    if number in _NAMED:
        setattr(vcpu, _NAMED[number], value & 0xFFFF_FFFF if number == _FMASK else value)
    elif number == _EFER:
        if value & ~(r.EFER_SCE | r.EFER_LME | r.EFER_LMA | r.EFER_NXE) or not value & r.EFER_LME:
            raise Fault(_GP, 0)
        old = vcpu.efer
        vcpu.efer = value
        if (old ^ value) & r.EFER_NXE:
            context.translations_changed()
    elif number in (_FS_BASE, _GS_BASE):
        vcpu.registers.set_segment_base(number - _FS_BASE + 4, value)
    elif number in _PLAIN_MSRS:
        vcpu.msrs[number] = value
    else:
        raise Fault(_GP, 0)


@handles(Operation.READ_MODEL_SPECIFIC_REGISTER)
def _rdmsr(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    gpr = vcpu.gpr

    def action() -> None:
        _kernel_only(vcpu)
        value = read_msr(vcpu, gpr[1] & 0xFFFF_FFFF)
        gpr[0], gpr[2] = value & 0xFFFF_FFFF, value >> 32
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_MODEL_SPECIFIC_REGISTER)
def _wrmsr(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    gpr = vcpu.gpr

    def action() -> None:
        _kernel_only(vcpu)
        write_msr(context, gpr[1] & 0xFFFF_FFFF, gpr[0] & 0xFFFF_FFFF | (gpr[2] & 0xFFFF_FFFF) << 32)
        vcpu.advance(length)

    return action


@handles(Operation.READ_PERFORMANCE_COUNTER)
def _rdpmc(_context: Context, _instruction: Instruction) -> Action:
    def action() -> None:
        raise Fault(_GP, 0)

    return action


@handles(Operation.READ_TIME_STAMP)
def _rdtsc(context: Context, instruction: Instruction) -> Action:
    if instruction.code == Code.RDTSCP:
        return _undefined
    vcpu, length = context.vcpu, len(instruction)
    gpr = vcpu.gpr

    def action() -> None:
        if vcpu.level and vcpu.cr4 & r.CR4_TSD:
            raise Fault(_GP, 0)
        value = context.time_stamp()
        gpr[0], gpr[2] = value & 0xFFFF_FFFF, value >> 32 & 0xFFFF_FFFF
        vcpu.advance(length)

    return action


def perform_identify(vcpu: VirtualCpu) -> None:
    """CPUID: RAX, RBX, RCX, RDX from the identity table."""
    gpr = vcpu.gpr
    gpr[0], gpr[3], gpr[1], gpr[2] = identify(gpr[0] & 0xFFFF_FFFF, gpr[1] & 0xFFFF_FFFF)


@handles(Operation.IDENTIFY_PROCESSOR)
def _cpuid(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        perform_identify(vcpu)
        vcpu.advance(length)

    return action


# -- descriptor tables and segments -----------------------------------------------------------------


@handles(Operation.READ_DESCRIPTOR_TABLE)
def _read_table(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    address = address_reader(vcpu, instruction)
    interrupts = instruction.code in (Code.SIDT_M1664, Code.SIDT_M1632, Code.SIDT_M1632_16)

    def action() -> None:
        at, user = address(), vcpu.level == 3
        base, limit = (vcpu.idt_base, vcpu.idt_limit) if interrupts else (vcpu.gdt_base, vcpu.gdt_limit)
        vcpu.write(at, 2, limit, user)
        vcpu.write(at + 2 & _MASK, 8, base, user)
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_DESCRIPTOR_TABLE)
def _write_table(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    address = address_reader(vcpu, instruction)
    interrupts = instruction.code in (Code.LIDT_M1664, Code.LIDT_M1632, Code.LIDT_M1632_16)

    def action() -> None:
        _kernel_only(vcpu)
        at = address()
        limit, base = vcpu.read(at, 2), vcpu.read(at + 2 & _MASK, 8)
        if (base + _HOLE) >> 48 & 0xFFFF:
            raise Fault(_GP, 0)
        if interrupts:
            vcpu.idt_base, vcpu.idt_limit = base, limit
        else:
            vcpu.gdt_base, vcpu.gdt_limit = base, limit
        context.descriptors_changed()
        vcpu.advance(length)

    return action


_SELECTOR_OF_CODE = {
    **dict.fromkeys((Code.SLDT_RM16, Code.SLDT_R32M16, Code.SLDT_R64M16, Code.LLDT_RM16), 6),
    **dict.fromkeys((Code.LLDT_R32M16, Code.LLDT_R64M16), 6),
}


@handles(Operation.READ_SYSTEM_SELECTOR)
def _read_system(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    index = _SELECTOR_OF_CODE.get(instruction.code, 7)
    write = operand_writer(vcpu, instruction, 0, 2)

    def action() -> None:
        write(vcpu.segment(index)[0])
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_SYSTEM_SELECTOR)
def _write_system(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    load = load_ldt if _SELECTOR_OF_CODE.get(instruction.code) == 6 else load_task_register
    read = operand_reader(vcpu, instruction, 0, 2)

    def action() -> None:
        _kernel_only(vcpu)
        load(vcpu, read() & 0xFFFF)
        context.descriptors_changed()
        vcpu.advance(length)

    return action


_SEGMENTS = {
    Register.ES: 0, Register.CS: 1, Register.SS: 2, Register.DS: 3, Register.FS: 4, Register.GS: 5,
}  # fmt: skip
_PUSH_SIZES = {Code.PUSHW_FS: 2, Code.PUSHW_GS: 2, Code.POPW_FS: 2, Code.POPW_GS: 2}
_PUSHES = frozenset({Code.PUSHW_FS, Code.PUSHW_GS, Code.PUSHQ_FS, Code.PUSHQ_GS})
_POPS = frozenset({Code.POPW_FS, Code.POPW_GS, Code.POPQ_FS, Code.POPQ_GS})


@handles(Operation.READ_SEGMENT_SELECTOR)
def _read_selector(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    if instruction.code in _PUSHES:
        index, size = _SEGMENTS[instruction.op_register(0)], _PUSH_SIZES.get(instruction.code, 8)

        def push() -> None:
            top = vcpu.gpr[4] - size & _MASK
            vcpu.write(top, size, vcpu.segment(index)[0], vcpu.level == 3)
            vcpu.gpr[4] = top
            vcpu.advance(length)

        return push
    index = _SEGMENTS[instruction.op_register(1)]
    write = operand_writer(vcpu, instruction, 0, 2)

    def action() -> None:
        write(vcpu.segment(index)[0])
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_SEGMENT_SELECTOR)
def _write_selector(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    if instruction.code in _POPS:
        index, size = _SEGMENTS[instruction.op_register(0)], _PUSH_SIZES.get(instruction.code, 8)

        def pop() -> None:
            top = vcpu.gpr[4]
            load_segment(vcpu, index, vcpu.read(top, size, vcpu.level == 3) & 0xFFFF)
            vcpu.gpr[4] = top + size & _MASK
            vcpu.advance(length)

        return pop
    first = instruction.op_register(0)
    if first in _SEGMENTS:
        if first == Register.CS:
            return _undefined
        index = _SEGMENTS[first]
        read = operand_reader(vcpu, instruction, 1, 2)

        def move() -> None:
            load_segment(vcpu, index, read() & 0xFFFF)
            vcpu.advance(length)

        return move
    return _load_far_pointer(context, instruction)


def _load_far_pointer(context: Context, instruction: Instruction) -> Action:
    """LSS, LFS, LGS: a general register and a segment register from memory."""
    vcpu, length = context.vcpu, len(instruction)
    text = str(instruction)
    index = {"lss": 2, "lfs": 4, "lgs": 5}[text.split()[0]]
    size = _operand_size(instruction)
    address, write = address_reader(vcpu, instruction), register_writer(vcpu, instruction.op_register(0))

    def action() -> None:
        at, user = address(), vcpu.level == 3
        value = vcpu.read(at, size, user)
        load_segment(vcpu, index, vcpu.read(at + size & _MASK, 2, user))
        write(value)
        vcpu.advance(length)

    return action


@handles(Operation.INSPECT_DESCRIPTOR)
def _inspect(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    name = str(instruction).split()[0]
    if name in ("verr", "verw"):
        check = verr if name == "verr" else verw
        read = operand_reader(vcpu, instruction, 0, 2)

        def verify() -> None:
            ok = check(vcpu, read() & 0xFFFF)
            vcpu.rflags = vcpu.rflags & ~r.FLAG_ZF | (r.FLAG_ZF if ok else 0)
            vcpu.advance(length)

        return verify
    query = lar if name == "lar" else lsl
    read, write = operand_reader(vcpu, instruction, 1, 2), register_writer(vcpu, instruction.op_register(0))

    def action() -> None:
        value = query(vcpu, read() & 0xFFFF)
        if value is not None:
            write(value)
        vcpu.rflags = vcpu.rflags & ~r.FLAG_ZF | (r.FLAG_ZF if value is not None else 0)
        vcpu.advance(length)

    return action


# -- memory, caches, ports --------------------------------------------------------------------------


@handles(Operation.INVALIDATE_PAGE)
def _invlpg(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    address = address_reader(vcpu, instruction)

    def action() -> None:
        _kernel_only(vcpu)
        context.invalidate(address())
        vcpu.advance(length)

    return action


@handles(Operation.FLUSH_CACHES)
def _wbinvd(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        _kernel_only(vcpu)
        vcpu.advance(length)

    return action


_PORT_IN_DX = {Code.IN_AL_DX: 1, Code.IN_AX_DX: 2, Code.IN_EAX_DX: 4}
_PORT_IN_IMM = {Code.IN_AL_IMM8: 1, Code.IN_AX_IMM8: 2, Code.IN_EAX_IMM8: 4}
_PORT_OUT_DX = {Code.OUT_DX_AL: 1, Code.OUT_DX_AX: 2, Code.OUT_DX_EAX: 4}
_PORT_OUT_IMM = {Code.OUT_IMM8_AL: 1, Code.OUT_IMM8_AX: 2, Code.OUT_IMM8_EAX: 4}


@handles(Operation.READ_PORT)
def _in(context: Context, instruction: Instruction) -> Action:
    vcpu, length, code = context.vcpu, len(instruction), instruction.code
    gpr = vcpu.gpr
    size = _PORT_IN_DX.get(code) or _PORT_IN_IMM.get(code)
    if size is None:
        return _string_port(context, instruction, True)
    fixed = instruction.immediate8 if code in _PORT_IN_IMM else -1

    def action() -> None:
        _kernel_only(vcpu)  # an access that user code is allowed never faults
        value = context.read_port(fixed if fixed >= 0 else gpr[2] & 0xFFFF, size)
        mask = (1 << 8 * size) - 1
        gpr[0] = value & mask if size == 4 else gpr[0] & ~mask | value & mask
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_PORT)
def _out(context: Context, instruction: Instruction) -> Action:
    vcpu, length, code = context.vcpu, len(instruction), instruction.code
    gpr = vcpu.gpr
    size = _PORT_OUT_DX.get(code) or _PORT_OUT_IMM.get(code)
    if size is None:
        return _string_port(context, instruction, False)
    fixed = instruction.immediate8 if code in _PORT_OUT_IMM else -1

    def action() -> None:
        _kernel_only(vcpu)
        context.write_port(fixed if fixed >= 0 else gpr[2] & 0xFFFF, size, gpr[0] & ((1 << 8 * size) - 1))
        vcpu.advance(length)

    return action


def _string_port(context: Context, instruction: Instruction, inward: bool) -> Action:
    """INS and OUTS, one element a visit: a repeated one stays at its address until RCX is 0."""
    vcpu, length = context.vcpu, len(instruction)
    size = _STRING_SIZES[instruction.code]
    repeated = instruction.has_rep_prefix or instruction.has_repne_prefix
    pointer = 7 if inward else 6
    gpr = vcpu.gpr

    def action() -> None:
        _kernel_only(vcpu)
        if repeated and gpr[1] == 0:
            vcpu.advance(length)
            return
        port, address, user = gpr[2] & 0xFFFF, gpr[pointer], vcpu.level == 3
        if inward:
            vcpu.write(address, size, context.read_port(port, size), user)
        else:
            context.write_port(port, size, vcpu.read(address, size, user))
        gpr[pointer] = address + (-size if vcpu.rflags & r.FLAG_DF else size) & _MASK
        if repeated:
            gpr[1] = gpr[1] - 1 & _MASK
        if not repeated or gpr[1] == 0:
            vcpu.advance(length)

    return action


_STRING_SIZES = {
    Code.INSB_M8_DX: 1, Code.INSW_M16_DX: 2, Code.INSD_M32_DX: 4,
    Code.OUTSB_DX_M8: 1, Code.OUTSW_DX_M16: 2, Code.OUTSD_DX_M32: 4,
}  # fmt: skip


@handles(Operation.SOFTWARE_INTERRUPT)
def _int(context: Context, instruction: Instruction) -> Action:
    from emulator.isa.x86.delivery import software_interrupt

    vcpu, length = context.vcpu, len(instruction)
    vector = {Code.INT3: 3, Code.INT1: 1}.get(instruction.code)
    number = instruction.immediate8 if vector is None else vector
    return lambda: software_interrupt(vcpu, number, length)


__all__ = ["PREPARE", "Action", "Context", "perform_identify", "pop_flags", "read_msr", "write_msr"]
