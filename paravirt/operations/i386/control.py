"""Control registers and model-specific registers of 32-bit guests.

Room: `paravirt/operations/i386`. Paging may be switched on and off and between its two formats; what that means
for translations is the hypervisor's, by `Context.paging_changed`.
"""

from iced_x86 import Instruction, RegisterExt

from emulator.errors import GuestFault
from emulator.isa.operation import Operation
from emulator.isa.x86 import msr as m
from emulator.isa.x86 import registers as r
from emulator.isa.x86.processor import Fault
from paravirt.operations.i386.context import MASK, Context, handles
from paravirt.operations.x86.context import GENERAL_PROTECTION, Action, kernel_only, undefined
from paravirt.operations.x86.model_specific import PLAIN_MSRS
from paravirt.operations.x86.operands import operand_reader, register_reader

_CR0_KEPT = r.CR0_PE | r.CR0_MP | r.CR0_EM | r.CR0_TS | r.CR0_ET | r.CR0_NE | r.CR0_WP | r.CR0_AM | r.CR0_NW
_CR0_KEPT |= r.CR0_CD | r.CR0_PG
_CR4_KNOWN = r.CR4_TSD | r.CR4_DE | r.CR4_PSE | r.CR4_PAE | r.CR4_MCE | r.CR4_PGE | r.CR4_PCE
_CR4_KNOWN |= r.CR4_OSFXSR | r.CR4_OSXMMEXCPT
_EFER = 0xC000_0080


def write_cr0(context: Context, value: int) -> None:
    """CR0 <- value: PG without PE, and NW without CD, are #GP. Raises `GuestFault` for a guest that leaves PE."""
    vcpu = context.vcpu
    if value & (r.CR0_PE | r.CR0_PG) == r.CR0_PG or (value & r.CR0_NW and not value & r.CR0_CD):
        raise Fault(GENERAL_PROTECTION, 0)
    if not value & r.CR0_PE:
        raise GuestFault(f"the guest enters real mode at {vcpu.rip:#x}, which cannot be run deprivileged")
    old, value = vcpu.cr0, value & _CR0_KEPT | r.CR0_ET
    vcpu.cr0 = value
    if (old ^ value) & r.CR0_PG:
        context.paging_changed()
    elif (old ^ value) & r.CR0_WP:
        context.translations_changed()
    if (old ^ value) & (r.CR0_TS | r.CR0_EM | r.CR0_MP | r.CR0_NE):
        context.real_controls_changed()


def write_cr4(context: Context, value: int) -> None:
    """CR4 <- value: features that CPUID does not show are #GP."""
    vcpu = context.vcpu
    if value & ~_CR4_KNOWN:
        raise Fault(GENERAL_PROTECTION, 0)
    old = vcpu.cr4
    vcpu.cr4 = value
    if (old ^ value) & (r.CR4_PAE | r.CR4_PSE):
        context.paging_changed()
    elif (old ^ value) & r.CR4_PGE:
        context.translations_changed()
    if (old ^ value) & (r.CR4_OSFXSR | r.CR4_OSXMMEXCPT):
        context.real_controls_changed()


@handles(Operation.WRITE_CONTROL_REGISTER)
def _write_control(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    read = register_reader(vcpu, instruction.op_register(1))

    def cr0() -> None:
        kernel_only(vcpu)
        write_cr0(context, read())
        vcpu.advance(length)

    def cr2() -> None:
        kernel_only(vcpu)
        vcpu.cr2 = read()
        vcpu.advance(length)

    def cr3() -> None:
        kernel_only(vcpu)
        vcpu.cr3 = read()
        if vcpu.cr0 & r.CR0_PG:
            context.root_loaded()
        vcpu.advance(length)

    def cr4() -> None:
        kernel_only(vcpu)
        write_cr4(context, read())
        vcpu.advance(length)

    return {0: cr0, 2: cr2, 3: cr3, 4: cr4}.get(RegisterExt.number(instruction.op_register(0)), undefined)


@handles(Operation.WRITE_MACHINE_STATUS_WORD)
def _lmsw(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    read = operand_reader(vcpu, instruction, 0, 2)

    def action() -> None:
        kernel_only(vcpu)
        write_cr0(context, vcpu.cr0 & ~0xE | read() & 0xF | vcpu.cr0 & 1)
        vcpu.advance(length)

    return action


@handles(Operation.READ_MODEL_SPECIFIC_REGISTER)
def _rdmsr(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    gpr = vcpu.gpr

    def action() -> None:
        kernel_only(vcpu)
        number = gpr[1] & MASK
        if number != _EFER and number not in PLAIN_MSRS:
            raise Fault(GENERAL_PROTECTION, 0)
        value = vcpu.efer if number == _EFER else vcpu.msrs.get(number, PLAIN_MSRS[number])
        gpr[0], gpr[2] = value & MASK, value >> 32
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_MODEL_SPECIFIC_REGISTER)
def _wrmsr(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    gpr = vcpu.gpr

    def action() -> None:
        kernel_only(vcpu)
        number, value = gpr[1] & MASK, gpr[0] & MASK | (gpr[2] & MASK) << 32
        if number == _EFER:
            if value & ~r.EFER_NXE:
                raise Fault(GENERAL_PROTECTION, 0)
            changed = vcpu.efer != value
            vcpu.efer = value
            if changed:
                context.translations_changed()
        elif number in PLAIN_MSRS:
            narrow = number in (m.IA32_SYSENTER_CS, m.IA32_SYSENTER_ESP, m.IA32_SYSENTER_EIP)
            vcpu.msrs[number] = value & MASK if narrow else value
        else:
            raise Fault(GENERAL_PROTECTION, 0)
        vcpu.advance(length)

    return action
