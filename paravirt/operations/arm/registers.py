"""System registers: what a read gives and what a write does, by the names of the ARM ARM.

Room: `paravirt/operations`. A register that is not here keeps what is written to it, and reads as it was identified at
reset; one that the processor shown to guests does not have is undefined.
"""

from __future__ import annotations

from collections.abc import Callable

from emulator.engine.arm import OTHER
from emulator.isa.arm import exceptions as x
from emulator.isa.arm.exceptions import ArmException
from emulator.isa.arm.system_registers import FLOATING_POINT, REGISTER_OF_KEY, SystemRegister
from emulator.isa.operation import Operation
from paravirt import abi
from paravirt.modes.arm.vcpu import ArmVirtualCpu
from paravirt.operations.arm.context import Action, Context, Instruction, handles

_MASK = 0xFFFF_FFFF
_FLAGS_TO_APSR = 15
TIMER = frozenset(
    {
        "CNTFRQ",
        "CNTKCTL",
        "CNTP_TVAL",
        "CNTP_CTL",
        "CNTV_TVAL",
        "CNTV_CTL",
        "CNTPCT",
        "CNTVCT",
        "CNTP_CVAL",
        "CNTV_CVAL",
    }
)
_ABSENT = frozenset({"SCR", "SDER", "MVBAR", "NSACR", "RMR", "TEEHBR", "JMCR", "TTBR0_64", "TTBR1_64", "PAR_64"})
"""Registers of extensions that are not offered."""
_THREAD = abi.ARM_THREAD // 4
_SCTLR_TRANSLATION = 1 | 1 << 29


def register_of(instruction: Instruction) -> SystemRegister | None:
    """The register that a coprocessor instruction names, or None where the manual has no name for it."""
    word = instruction.word
    coprocessor = word >> 8 & 15
    if instruction.name.startswith(("MRRC", "MCRR")):
        return REGISTER_OF_KEY.get((coprocessor, word >> 4 & 15, -1, word & 15, 0))
    return REGISTER_OF_KEY.get((coprocessor, word >> 21 & 7, word >> 16 & 15, word & 15, word >> 5 & 7))


def read_register(context: Context, name: str) -> int:
    """What a kernel reads. Raises Undefined Instruction for what is absent."""
    vcpu = context.vcpu
    translation = vcpu.context
    if name in TIMER:
        return context.read_timer(name)
    if name in _ABSENT:
        raise x.undefined()
    found = {
        "SCTLR": translation.sctlr,
        "TTBR0": translation.ttbr0,
        "TTBR1": translation.ttbr1,
        "TTBCR": translation.ttbcr,
        "DACR": translation.dacr,
        "VBAR": vcpu.vbar,
    }.get(name)
    if found is not None:
        return found
    if name == "CPACR":
        return vcpu.cpacr
    if name in ("TPIDRPRW", "TPIDRURO", "TPIDRURW"):
        return read_thread(vcpu, name)
    if name == "DBGDSCRint":
        name = "DBGDSCRext"
    if name == "ISR":
        return x.MASK_I if context.requested else 0
    return vcpu.system.get(name, 0)


def read_thread(vcpu: ArmVirtualCpu, name: str) -> int:
    """A thread register while the kernel runs."""
    place = vcpu.thread_places[name]
    return int(vcpu.shared[_THREAD]) if place < 0 else vcpu.engine.threads(OTHER)[place]


def write_thread(vcpu: ArmVirtualCpu, name: str, value: int) -> None:
    """Change a thread register while the kernel runs."""
    place = vcpu.thread_places[name]
    if place < 0:
        vcpu.shared[_THREAD] = value
        return
    registers = list(vcpu.engine.threads(OTHER))
    registers[place] = value
    vcpu.engine.set_threads(OTHER, *registers)


def write_register(context: Context, name: str, value: int) -> None:
    """What a kernel writes. Raises Undefined Instruction for what is absent."""
    if name in TIMER:
        context.write_timer(name, value)
        return
    if name in _ABSENT:
        raise x.undefined()
    special = _WRITES.get(name)
    if special is not None:
        special(context, value)
    else:
        context.vcpu.system[name] = value
        if name.startswith("DBG"):
            context.debug_changed()


def _write_sctlr(context: Context, value: int) -> None:
    translation = context.vcpu.context
    old, translation.sctlr = translation.sctlr, value
    if (old ^ value) & _SCTLR_TRANSLATION:
        context.address_space_changed()


def _write_translation(name: str) -> Callable[[Context, int], None]:
    def write(context: Context, value: int) -> None:
        translation = context.vcpu.context
        if getattr(translation, name) != value:
            setattr(translation, name, value)
            context.address_space_changed()

    return write


def _write_dacr(context: Context, value: int) -> None:
    translation = context.vcpu.context
    old, translation.dacr = translation.dacr, value
    if old != value:
        context.domains_changed(old)


def _write_vbar(context: Context, value: int) -> None:
    context.vcpu.vbar = value & 0xFFFF_FFE0


def _write_context(context: Context, value: int) -> None:
    context.vcpu.system["CONTEXTIDR"] = value
    context.asid_changed(value & 0xFF)


def _write_cpacr(context: Context, value: int) -> None:
    context.vcpu.cpacr = value
    context.floating_point_changed()


_WRITES: dict[str, Callable[[Context, int], None]] = {
    "SCTLR": _write_sctlr,
    "TTBR0": _write_translation("ttbr0"),
    "TTBR1": _write_translation("ttbr1"),
    "TTBCR": _write_translation("ttbcr"),
    "DACR": _write_dacr,
    "VBAR": _write_vbar,
    "CONTEXTIDR": _write_context,
    "CPACR": _write_cpacr,
    **{
        name: (lambda context, value, name=name: write_thread(context.vcpu, name, value))  # type: ignore[misc]
        for name in ("TPIDRPRW", "TPIDRURO", "TPIDRURW")
    },
}


@handles(Operation.READ_SYSTEM_REGISTER, Operation.IDENTIFY_PROCESSOR, Operation.READ_TIME_STAMP)
def read_system_register(context: Context, instruction: Instruction) -> Action:
    """MRC, MRRC, VMRS."""
    vcpu, word, size = context.vcpu, instruction.word, instruction.size
    if instruction.name.startswith("VMRS"):
        return _read_floating_point(context, instruction)
    register = register_of(instruction)
    target = instruction.rt
    if register is None:

        def refuse() -> None:
            raise x.undefined()

        return refuse if word >> 8 & 15 == 14 else _read_zero(context, instruction)
    name = register.name
    if register.wide:
        high = word >> 16 & 15

        def read_wide() -> None:
            value = read_register(context, name)
            vcpu.gpr[target], vcpu.gpr[high] = value & _MASK, value >> 32 & _MASK
            vcpu.advance(size)

        return read_wide

    def read() -> None:
        value = read_register(context, name)
        if target == _FLAGS_TO_APSR:
            vcpu.write_status(value, 0xF000_0000)
        else:
            vcpu.gpr[target] = value & _MASK
        vcpu.advance(size)

    return read


def _read_zero(context: Context, instruction: Instruction) -> Action:
    """An implementation-defined register of CP15: there, and zero."""

    def read() -> None:
        if instruction.rt != _FLAGS_TO_APSR:
            context.vcpu.gpr[instruction.rt] = 0
        context.vcpu.advance(instruction.size)

    return read


@handles(Operation.WRITE_SYSTEM_REGISTER)
def write_system_register(context: Context, instruction: Instruction) -> Action:
    """MCR, MCRR, VMSR."""
    vcpu, word, size = context.vcpu, instruction.word, instruction.size
    if instruction.name.startswith("VMSR"):
        return _write_floating_point(context, instruction)
    register = register_of(instruction)
    source = instruction.rt
    if register is None:

        def ignore() -> None:
            if word >> 8 & 15 == 14:
                raise x.undefined()
            vcpu.advance(size)

        return ignore
    name = register.name
    high = word >> 16 & 15 if register.wide else -1

    def write() -> None:
        value = vcpu.gpr[source] | (vcpu.gpr[high] << 32 if high >= 0 else 0)
        vcpu.advance(size)  # first: the register may change where the next instruction is fetched from
        try:
            write_register(context, name, value)
        except ArmException:
            vcpu.pc -= size
            raise

    return write


@handles(Operation.MAINTAIN_CACHES)
def maintain_caches(context: Context, instruction: Instruction) -> Action:
    """Cache maintenance: memory is always coherent here, code included, since stores to it are seen."""

    def nothing() -> None:
        context.vcpu.advance(instruction.size)

    return nothing


@handles(Operation.INVALIDATE_TRANSLATIONS)
def invalidate_translations(context: Context, instruction: Instruction) -> Action:
    """TLBI operations."""
    vcpu, size, source = context.vcpu, instruction.size, instruction.rt
    register = register_of(instruction)
    assert register is not None
    if "MVA" in register.name:

        def invalidate() -> None:
            context.invalidate(vcpu.gpr[source] & 0xFFFF_F000)
            vcpu.advance(size)

        return invalidate

    def invalidate_all() -> None:
        context.invalidate_all()
        vcpu.advance(size)

    return invalidate_all


@handles(Operation.TRANSLATE_ADDRESS)
def translate_address(context: Context, instruction: Instruction) -> Action:
    """ATS1C operations: the result is in PAR (B3.13, B4.1.112)."""
    vcpu, size, source = context.vcpu, instruction.size, instruction.rt
    register = register_of(instruction)
    assert register is not None
    name = register.name
    if name.startswith("ATS12"):

        def refuse() -> None:
            raise x.undefined()

        return refuse
    write, user = name.endswith("W"), name[-2] == "U"

    def translate() -> None:
        address = vcpu.gpr[source]
        try:
            walk = vcpu.walker.walk(address, write, user, False)
            vcpu.system["PAR"] = walk.physical & 0xFFFF_F000
        except ArmException as fault:
            status = fault.error or 0
            vcpu.system["PAR"] = 1 | (status & 15) << 1 | status >> 5 & 1 << 5
        vcpu.advance(size)

    return translate


# -- floating point -----------------------------------------------------------------------------

_FLOATING = {number: name for name, number, _ in FLOATING_POINT}


def _floating_point_allowed(vcpu: ArmVirtualCpu) -> bool:
    """Whether CPACR lets the kernel use coprocessors 10 and 11."""
    return bool(vcpu.cpacr >> 20 & 1)


def _read_floating_point(context: Context, instruction: Instruction) -> Action:
    vcpu = context.vcpu
    name = _FLOATING[instruction.word >> 16 & 15]

    def read() -> None:
        if not _floating_point_allowed(vcpu) or name.startswith("FPINST"):
            raise x.undefined()
        value = vcpu.fpexc if name == "FPEXC" else vcpu.system[name]
        vcpu.gpr[instruction.rt] = value
        vcpu.advance(instruction.size)

    return read


def _write_floating_point(context: Context, instruction: Instruction) -> Action:
    vcpu = context.vcpu
    name = _FLOATING[instruction.word >> 16 & 15]

    def write() -> None:
        if not _floating_point_allowed(vcpu) or name.startswith("FPINST"):
            raise x.undefined()
        if name == "FPEXC":
            vcpu.fpexc = vcpu.gpr[instruction.rt]
            context.floating_point_changed()
        vcpu.advance(instruction.size)

    return write


@handles(Operation.ACCESS_DEBUG_CHANNEL)
def access_debug_channel(context: Context, instruction: Instruction) -> Action:
    """There is no debugger at the other end."""

    def refuse() -> None:
        raise x.undefined()

    return refuse
