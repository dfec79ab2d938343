"""Returns from exceptions, loads and stores of other modes' registers, unprivileged accesses, calls and waiting.

Room: `paravirt/operations`. ARM ARM, B9.3 and A8.8. A load or store that aborts leaves the registers as they were.
"""

from __future__ import annotations

from emulator.isa.arm import exceptions as x
from emulator.isa.arm.exceptions import ArmException
from emulator.isa.arm.paging import SCTLR_A
from emulator.isa.operation import Operation
from paravirt.operations.arm.context import Action, Context, Instruction, handles

_MASK = 0xFFFF_FFFF
_LINK, _PC = 14, 15


def _aligned(context: Context, address: int, size: int, write: bool) -> int:
    """An address that must be aligned. Raises the alignment abort."""
    if address & size - 1:
        raise ArmException(x.DATA_ABORT, x.ALIGNMENT | (x.WRITE if write else 0), address)
    return address


def _read_word(context: Context, address: int) -> int:
    address &= _MASK
    return context.vcpu.read(_aligned(context, address, 4, False), 4, False)


def _shifted(context: Context, word: int) -> tuple[int, int]:
    """The second operand of data processing by register with an immediate shift, and its carry (A5.2.1, A8.4.3)."""
    vcpu = context.vcpu
    number = word & 15
    value = vcpu.gpr[number] + (8 if number == _PC else 0) & _MASK
    amount, kind = word >> 7 & 31, word >> 5 & 3
    carry = vcpu.registers.cpsr >> 29 & 1
    if kind == 0:
        return value << amount & _MASK, carry
    if kind == 1:
        return value >> (amount or 32), carry
    if kind == 2:
        signed = value - (1 << 32) if value >> 31 else value
        return signed >> (amount or 32) & _MASK, carry
    if not amount:
        return carry << 31 | value >> 1, carry
    return (value >> amount | value << 32 - amount) & _MASK, carry


def _data_processing(context: Context, word: int) -> int:
    """The result of data processing."""
    if word & 1 << 25:
        rotate = 2 * (word >> 8 & 15)
        second = (word & 0xFF) >> rotate | (word & 0xFF) << 32 - rotate & _MASK
        carry = context.vcpu.registers.cpsr >> 29 & 1
    else:
        second, carry = _shifted(context, word)
    number = word >> 16 & 15
    first = context.vcpu.gpr[number] + (8 if number == _PC else 0)
    operation = word >> 21 & 15
    results = {
        0: first & second,
        1: first ^ second,
        2: first - second,
        3: second - first,
        4: first + second,
        5: first + second + carry,
        6: first - second - 1 + carry,
        7: second - first - 1 + carry,
        12: first | second,
        13: second,
        14: first & ~second,
        15: ~second,
    }
    return results[operation] & _MASK


@handles(Operation.RETURN_FROM_EXCEPTION)
def return_from_exception(context: Context, instruction: Instruction) -> Action:
    """Data processing into PC, ERET, LDM with ^ and PC, RFE."""
    name, word, vcpu = instruction.name, instruction.word, context.vcpu
    if name == "RFE":
        return _rfe(context, instruction)
    if name == "LDM exception return":
        return _load_and_return(context, instruction)
    if instruction.thumb:  # SUBS PC, LR, #imm8

        def subtract() -> None:
            vcpu.leave(vcpu.gpr[_LINK] - (word & 0xFF) & _MASK, vcpu.spsr)

        return subtract
    if name == "ERET":

        def eret() -> None:
            vcpu.leave(vcpu.gpr[_LINK], vcpu.spsr)

        return eret

    def compute() -> None:
        vcpu.leave(_data_processing(context, word), vcpu.spsr)

    return compute


def _rfe(context: Context, instruction: Instruction) -> Action:
    word, vcpu = instruction.word, context.vcpu
    base = instruction.rn
    if instruction.thumb:
        up, before = bool(word & 1 << 24), False
        low = 0 if up else -8
    else:
        up, before = bool(word & 1 << 23), bool(word & 1 << 24)
        low = (4 if before else 0) if up else (-8 if before else -4)
    write_back = bool(word & 1 << 21)

    def rfe() -> None:
        start = vcpu.gpr[base]
        address, status = _read_word(context, start + low), _read_word(context, start + low + 4)
        if write_back:
            vcpu.gpr[base] = start + (8 if up else -8) & _MASK
        vcpu.leave(address, status)

    return rfe


def _block(word: int, count: int) -> tuple[int, int]:
    """Distance from the base to the lowest address of a block transfer, and what write-back adds (A8.8.58)."""
    up, before = bool(word & 1 << 23), bool(word & 1 << 24)
    if up:
        return (4 if before else 0), 4 * count
    return -4 * count + (0 if before else 4), -4 * count


def _load_and_return(context: Context, instruction: Instruction) -> Action:
    word, vcpu = instruction.word, context.vcpu
    numbers = [number for number in range(16) if word >> number & 1]
    low, change = _block(word, len(numbers))
    base, write_back = instruction.rn, bool(word & 1 << 21)

    def load() -> None:
        start = vcpu.gpr[base]
        values = [_read_word(context, start + low + 4 * place) for place in range(len(numbers))]
        if write_back and base not in numbers:
            vcpu.gpr[base] = start + change & _MASK
        for number, value in zip(numbers[:-1], values[:-1], strict=True):
            vcpu.gpr[number] = value
        vcpu.leave(values[-1], vcpu.spsr)

    return load


def _user_register(context: Context, number: int) -> int:
    vcpu = context.vcpu
    if 8 <= number <= 12:
        return vcpu.high_register(number, fast=False)
    return vcpu.banked(x.USR, number - 13) if number in (13, 14) else vcpu.gpr[number]


@handles(Operation.LOAD_USER_REGISTERS)
def load_user_registers(context: Context, instruction: Instruction) -> Action:
    """LDM with ^ and without PC."""
    word, vcpu = instruction.word, context.vcpu
    numbers = [number for number in range(15) if word >> number & 1]
    low, _ = _block(word, len(numbers))

    def load() -> None:
        start = vcpu.gpr[instruction.rn]
        values = [_read_word(context, start + low + 4 * place) for place in range(len(numbers))]
        for number, value in zip(numbers, values, strict=True):
            if 8 <= number <= 12:
                vcpu.set_high_register(number, False, value)
            elif number in (13, 14):
                vcpu.set_banked(x.USR, number - 13, value)
            else:
                vcpu.gpr[number] = value
        vcpu.advance(4)

    return load


@handles(Operation.STORE_USER_REGISTERS)
def store_user_registers(context: Context, instruction: Instruction) -> Action:
    """STM with ^."""
    word, vcpu = instruction.word, context.vcpu
    numbers = [number for number in range(16) if word >> number & 1]
    low, _ = _block(word, len(numbers))

    def store() -> None:
        start = vcpu.gpr[instruction.rn]
        for place, number in enumerate(numbers):
            address = _aligned(context, start + low + 4 * place & _MASK, 4, True)
            value = vcpu.pc + 8 if number == _PC else _user_register(context, number)
            vcpu.write(address, 4, value & _MASK, False)
        vcpu.advance(4)

    return store


@handles(Operation.SAVE_EXCEPTION_STATE)
def save_exception_state(context: Context, instruction: Instruction) -> Action:
    """SRS: LR and SPSR of the current mode to the stack of a mode (B9.3.16)."""
    word, vcpu = instruction.word, context.vcpu
    if instruction.thumb:
        up, before = bool(word & 1 << 24), False
        low = 0 if up else -8
    else:
        up, before = bool(word & 1 << 23), bool(word & 1 << 24)
        low = (4 if before else 0) if up else (-8 if before else -4)
    write_back, mode = bool(word & 1 << 21), word & 0x1F

    def save() -> None:
        if mode not in x.MODES:
            raise x.undefined()
        start = vcpu.banked(mode, 0)
        address = _aligned(context, start + low & _MASK, 4, True)
        vcpu.write(address, 4, vcpu.gpr[_LINK], False)
        vcpu.write(address + 4 & _MASK, 4, vcpu.spsr, False)
        if write_back:
            vcpu.set_banked(mode, 0, start + (8 if up else -8) & _MASK)
        vcpu.advance(instruction.size)

    return save


_ACCESSES = {
    # bytes, signed
    "LDRT": (4, False),
    "STRT": (4, False),
    "LDRBT": (1, False),
    "STRBT": (1, False),
    "LDRHT": (2, False),
    "STRHT": (2, False),
    "LDRSBT": (1, True),
    "LDRSHT": (2, True),
}


@handles(Operation.ACCESS_AS_USER)
def access_as_user(context: Context, instruction: Instruction) -> Action:
    """LDRT, STRT and their kin: checked with user code's rights."""
    name, word, vcpu, thumb = instruction.name, instruction.word, context.vcpu, instruction.thumb
    size, signed = _ACCESSES[name]
    target, base, load = instruction.rt, instruction.rn, name.startswith("L")

    def offset() -> int:
        if thumb:
            return word & 0xFF
        if size == 4 or name in ("LDRBT", "STRBT"):
            distance = _shifted(context, word)[0] if word & 1 << 25 else word & 0xFFF
        else:
            distance = word >> 4 & 0xF0 | word & 15 if word & 1 << 22 else vcpu.gpr[word & 15]
        return distance if word & 1 << 23 else -distance

    def access() -> None:
        start = vcpu.gpr[base]
        distance = offset()
        address = (start + distance if thumb else start) & _MASK
        if address & size - 1 and vcpu.context.sctlr & SCTLR_A:
            raise ArmException(x.DATA_ABORT, x.ALIGNMENT | (0 if load else x.WRITE), address)
        if load:
            value = _read_bytes(context, address, size)
            if signed and value >> 8 * size - 1:
                value |= _MASK << 8 * size & _MASK
            vcpu.gpr[target] = value
        else:
            _write_bytes(context, address, size, vcpu.gpr[target])
        if not thumb:
            vcpu.gpr[base] = start + distance & _MASK
        vcpu.advance(instruction.size)

    return access


def _read_bytes(context: Context, address: int, size: int) -> int:
    """A user access that may cross a page."""
    read = context.vcpu.read
    if not address & size - 1:
        return read(address, size, True)
    return sum(read(address + place & _MASK, 1, True) << 8 * place for place in range(size))


def _write_bytes(context: Context, address: int, size: int, value: int) -> None:
    write = context.vcpu.write
    if not address & size - 1:
        write(address, size, value & (1 << 8 * size) - 1, True)
        return
    context.vcpu.walker.walk(address + size - 1 & _MASK, True, True, False)  # both pages, or neither
    for place in range(size):
        write(address + place & _MASK, 1, value >> 8 * place & 0xFF, True)


@handles(Operation.SYSTEM_CALL, Operation.RAISE_UNDEFINED, Operation.BREAKPOINT)
def enter_exception(context: Context, instruction: Instruction) -> Action:
    """SVC, UDF and BKPT where a hypercall stands for them: the exception itself."""
    kind = instruction.row.operation
    vector = {Operation.SYSTEM_CALL: x.SUPERVISOR_CALL, Operation.BREAKPOINT: x.PREFETCH_ABORT}.get(kind, x.UNDEFINED)
    status = x.DEBUG_EVENT if kind is Operation.BREAKPOINT else None

    def enter() -> None:
        raise ArmException(vector, status, context.vcpu.pc if status else 0)

    return enter


@handles(Operation.HALT)
def halt(context: Context, instruction: Instruction) -> Action:
    """WFI."""

    def wait() -> None:
        context.vcpu.advance(instruction.size)
        context.halted()

    return wait


@handles(Operation.WAIT_FOR_EVENT)
def wait_for_event(context: Context, instruction: Instruction) -> Action:
    """WFE: an event may always have come already."""

    def go_on() -> None:
        context.vcpu.advance(instruction.size)

    return go_on


@handles(Operation.ENTER_HYPERVISOR, Operation.CALL_SECURE_MONITOR)
def call_firmware(context: Context, instruction: Instruction) -> Action:
    """HVC and SMC: the firmware's power interface."""

    def call() -> None:
        context.vcpu.advance(instruction.size)
        context.call_firmware()

    return call
