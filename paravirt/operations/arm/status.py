"""CPS, MRS, MSR, SETEND and the banked registers: the processor's status and modes.

Room: `paravirt/operations`. Fields as the ARM ARM has them, B9.3; T32's are brought into the shape of A32's.
"""

from __future__ import annotations

from emulator.isa.arm import exceptions as x
from emulator.isa.operation import Operation
from paravirt.operations.arm.context import Action, Context, Instruction, handles

_BYTES = (0xFF, 0xFF00, 0xFF_0000, 0xFF00_0000)


@handles(Operation.ENABLE_INTERRUPTS, Operation.DISABLE_INTERRUPTS, Operation.CHANGE_MODE)
def change_status(context: Context, instruction: Instruction) -> Action:
    """CPS (B9.3.2)."""
    word, vcpu, size = instruction.word, context.vcpu, instruction.size
    if instruction.thumb and size == 2:
        named, mode, disable = (word & 7) << 6, 0, bool(word & 1 << 4)
        acts = True
    elif instruction.thumb:
        named, mode = (word & 0xE0) << 1, word & 0x1F if word & 1 << 8 else 0
        acts, disable = bool(word & 1 << 10), bool(word & 1 << 9)
    else:
        named, mode = word & 0x1C0, word & 0x1F if word & 1 << 17 else 0
        acts, disable = bool(word & 1 << 19), bool(word & 1 << 18)
    bits = (named if acts else 0) | (x.MODE if mode else 0)
    value = (named if disable else 0) | mode

    def change() -> None:
        vcpu.write_status(value, bits)
        vcpu.advance(size)

    return change


@handles(Operation.READ_FLAGS)
def read_status(context: Context, instruction: Instruction) -> Action:
    """MRS CPSR: execution state bits read as zero (B9.3.8)."""
    vcpu, size = context.vcpu, instruction.size
    target = instruction.word >> 8 & 15 if instruction.thumb else instruction.rt
    shown = 0xF8FF_03DF

    def read() -> None:
        vcpu.gpr[target] = vcpu.cpsr & shown
        vcpu.advance(size)

    return read


def _written(instruction: Instruction) -> tuple[int, int, int]:
    """Bits that an MSR names, its register or -1, and its immediate."""
    word = instruction.word
    fields = word >> 8 & 15 if instruction.thumb else word >> 16 & 15
    bits = sum(mask for number, mask in enumerate(_BYTES) if fields >> number & 1)
    if instruction.thumb:
        return bits, word >> 16 & 15, 0
    if word & 1 << 25:
        rotate = 2 * (word >> 8 & 15)
        value = word & 0xFF
        return bits, -1, (value >> rotate | value << 32 - rotate) & 0xFFFF_FFFF
    return bits, word & 15, 0


@handles(Operation.WRITE_FLAGS)
def write_status(context: Context, instruction: Instruction) -> Action:
    """MSR CPSR in a privileged mode; execution state bits stay."""
    bits, source, value = _written(instruction)
    vcpu, size = context.vcpu, instruction.size
    bits &= x.FLAGS | x.BIT_E | x.MASKS | x.MODE

    def write() -> None:
        vcpu.write_status(vcpu.gpr[source] if source >= 0 else value, bits)
        vcpu.advance(size)

    return write


@handles(Operation.READ_SAVED_STATUS)
def read_saved(context: Context, instruction: Instruction) -> Action:
    """MRS SPSR."""
    vcpu, size = context.vcpu, instruction.size
    target = instruction.word >> 8 & 15 if instruction.thumb else instruction.rt

    def read() -> None:
        vcpu.gpr[target] = vcpu.spsr
        vcpu.advance(size)

    return read


@handles(Operation.WRITE_SAVED_STATUS)
def write_saved(context: Context, instruction: Instruction) -> Action:
    """MSR SPSR."""
    bits, source, value = _written(instruction)
    vcpu, size = context.vcpu, instruction.size

    def write() -> None:
        new = vcpu.gpr[source] if source >= 0 else value
        vcpu.spsr = vcpu.spsr & ~bits | new & bits
        vcpu.advance(size)

    return write


@handles(Operation.SET_ENDIANNESS)
def set_endianness(context: Context, instruction: Instruction) -> Action:
    """SETEND."""
    vcpu, size = context.vcpu, instruction.size
    big = instruction.word >> (3 if instruction.thumb else 9) & 1

    def change() -> None:
        real = vcpu.registers.cpsr
        vcpu.registers.cpsr = real & ~x.BIT_E | (x.BIT_E if big else 0)
        vcpu.advance(size)

    return change


_SAVED = {0b01110: x.FIQ, 0b10000: x.IRQ, 0b10010: x.SVC, 0b10100: x.ABT, 0b10110: x.UND}
_PAIRS = (x.IRQ, x.SVC, x.ABT, x.UND)


def _banked(context: Context, instruction: Instruction) -> tuple[bool, int]:
    """R and SYSm of a banked MRS or MSR (B9.2.3)."""
    word = instruction.word
    if not instruction.thumb:
        return bool(word & 1 << 22), word >> 16 & 15 | word >> 4 & 16
    reads = word & 0x0060_0000 == 0x0060_0000
    return bool(word & 1 << 20), (word >> 16 & 15 if reads else word >> 8 & 15) | word & 16


def _read_banked(context: Context, saved: bool, number: int) -> int:
    vcpu = context.vcpu
    if saved:
        mode = _SAVED.get(number)
        return vcpu.banked(mode, 2) if mode is not None else 0
    if number < 5:
        return vcpu.high_register(8 + number, fast=False)
    if number < 7:
        return vcpu.banked(x.USR, number - 5)
    if 8 <= number < 13:
        return vcpu.high_register(number, fast=True)
    if number in (13, 14):
        return vcpu.banked(x.FIQ, number - 13)
    if 16 <= number < 24:
        return vcpu.banked(_PAIRS[number - 16 >> 1], 1 - (number & 1))
    raise x.undefined()


def _write_banked(context: Context, saved: bool, number: int, value: int) -> None:
    vcpu = context.vcpu
    if saved:
        mode = _SAVED.get(number)
        if mode is not None:
            vcpu.set_banked(mode, 2, value)
    elif number < 5:
        vcpu.set_high_register(8 + number, False, value)
    elif number < 7:
        vcpu.set_banked(x.USR, number - 5, value)
    elif 8 <= number < 13:
        vcpu.set_high_register(number, True, value)
    elif number in (13, 14):
        vcpu.set_banked(x.FIQ, number - 13, value)
    elif 16 <= number < 24:
        vcpu.set_banked(_PAIRS[number - 16 >> 1], 1 - (number & 1), value)
    else:
        raise x.undefined()


@handles(Operation.READ_BANKED_REGISTER)
def read_banked(context: Context, instruction: Instruction) -> Action:
    """MRS of a banked register (B9.3.9)."""
    saved, number = _banked(context, instruction)
    target = instruction.word >> 8 & 15 if instruction.thumb else instruction.rt
    vcpu, size = context.vcpu, instruction.size

    def read() -> None:
        vcpu.gpr[target] = _read_banked(context, saved, number)
        vcpu.advance(size)

    return read


@handles(Operation.WRITE_BANKED_REGISTER)
def write_banked(context: Context, instruction: Instruction) -> Action:
    """MSR of a banked register (B9.3.10)."""
    saved, number = _banked(context, instruction)
    source = instruction.word >> 16 & 15 if instruction.thumb else instruction.word & 15
    vcpu, size = context.vcpu, instruction.size

    def write() -> None:
        _write_banked(context, saved, number, vcpu.gpr[source])
        vcpu.advance(size)

    return write
