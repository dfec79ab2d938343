"""Model-specific registers, the time stamp, and CPUID.

Room: `paravirt/operations`. A register that this processor does not have is #GP, which kernels expect.
"""

from iced_x86 import Code, Instruction

from emulator.isa.operation import Operation
from emulator.isa.x86 import msr as m
from emulator.isa.x86 import registers as r
from emulator.isa.x86.processor import Fault
from paravirt.modes.x86.vcpu import X86VirtualCpu
from paravirt.operations.x86.context import (
    GENERAL_PROTECTION,
    HOLE,
    Action,
    Context,
    handles,
    kernel_only,
    undefined,
)

_FS_BASE, _GS_BASE, _KERNEL_GS = 0xC000_0100, 0xC000_0101, 0xC000_0102
_STAR, _LSTAR, _CSTAR, _FMASK, _EFER = 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0080
_NAMED = {_STAR: "star", _LSTAR: "lstar", _CSTAR: "cstar", _FMASK: "fmask", _KERNEL_GS: "kernel_gs_base"}
PLAIN_MSRS = {
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


def read_msr(vcpu: X86VirtualCpu, number: int) -> int:
    """The value of an MSR; #GP for one this processor does not have."""
    if number in _NAMED:
        return int(getattr(vcpu, _NAMED[number]))
    if number == _EFER:
        return vcpu.efer
    if number in (_FS_BASE, _GS_BASE):
        return vcpu.registers.segment_base(number - _FS_BASE + 4)
    if number in PLAIN_MSRS:
        return vcpu.msrs.get(number, PLAIN_MSRS[number])
    raise Fault(GENERAL_PROTECTION, 0)


def write_msr(context: Context, number: int, value: int) -> None:
    """Write an MSR; #GP for one this processor does not have, or a value it refuses."""
    vcpu = context.vcpu
    if number in _CANONICAL and (value + HOLE) >> 48 & 0xFFFF:
        raise Fault(GENERAL_PROTECTION, 0)
    if number in _NAMED:
        setattr(vcpu, _NAMED[number], value & 0xFFFF_FFFF if number == _FMASK else value)
    elif number == _EFER:
        if value & ~(r.EFER_SCE | r.EFER_LME | r.EFER_LMA | r.EFER_NXE) or not value & r.EFER_LME:
            raise Fault(GENERAL_PROTECTION, 0)
        old = vcpu.efer
        vcpu.efer = value
        if (old ^ value) & r.EFER_NXE:
            context.translations_changed()
    elif number in (_FS_BASE, _GS_BASE):
        vcpu.registers.set_segment_base(number - _FS_BASE + 4, value)
    elif number in PLAIN_MSRS:
        vcpu.msrs[number] = value
    else:
        raise Fault(GENERAL_PROTECTION, 0)


@handles(Operation.READ_MODEL_SPECIFIC_REGISTER)
def _rdmsr(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    gpr = vcpu.gpr

    def action() -> None:
        kernel_only(vcpu)
        value = read_msr(vcpu, gpr[1] & 0xFFFF_FFFF)
        gpr[0], gpr[2] = value & 0xFFFF_FFFF, value >> 32
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_MODEL_SPECIFIC_REGISTER)
def _wrmsr(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    gpr = vcpu.gpr

    def action() -> None:
        kernel_only(vcpu)
        write_msr(context, gpr[1] & 0xFFFF_FFFF, gpr[0] & 0xFFFF_FFFF | (gpr[2] & 0xFFFF_FFFF) << 32)
        vcpu.advance(length)

    return action


@handles(Operation.READ_PERFORMANCE_COUNTER)
def _rdpmc(_context: Context, _instruction: Instruction) -> Action:
    def action() -> None:
        raise Fault(GENERAL_PROTECTION, 0)

    return action


@handles(Operation.READ_TIME_STAMP)
def _rdtsc(context: Context, instruction: Instruction) -> Action:
    if instruction.code == Code.RDTSCP:
        return undefined
    vcpu, length = context.vcpu, len(instruction)
    gpr = vcpu.gpr

    def action() -> None:
        if vcpu.level and vcpu.cr4 & r.CR4_TSD:
            raise Fault(GENERAL_PROTECTION, 0)
        value = context.time_stamp()
        gpr[0], gpr[2] = value & 0xFFFF_FFFF, value >> 32 & 0xFFFF_FFFF
        vcpu.advance(length)

    return action


def perform_identify(vcpu: X86VirtualCpu) -> None:
    """CPUID: RAX, RBX, RCX, RDX from the identity table."""
    gpr = vcpu.gpr
    gpr[0], gpr[3], gpr[1], gpr[2] = vcpu.IDENTIFY(gpr[0] & 0xFFFF_FFFF, gpr[1] & 0xFFFF_FFFF)


@handles(Operation.IDENTIFY_PROCESSOR)
def _cpuid(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        perform_identify(vcpu)
        vcpu.advance(length)

    return action
