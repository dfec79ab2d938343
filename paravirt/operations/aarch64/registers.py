"""MRS and MSR of system registers.

Room: `paravirt/operations`. A register is plain storage in the virtual CPU unless it stands below: those with a place
of their own, those that do something when they are written, and the timer's, which are the board's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.encoding import named
from emulator.isa.aarch64.registers import BY_ENCODING, BY_NAME
from emulator.isa.operation import Operation
from emulator.isa.sensitive import SensitiveInstruction
from paravirt.modes.aarch64.vcpu import AArch64VirtualCpu
from paravirt.operations.aarch64.context import Action, Context, handles

_ZERO_REGISTER: Final = 31
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_SCTLR_RESERVED: Final = 0x30D0_0800
_SCTLR_TRANSLATION: Final = 1 << 0 | 1 << 19
_EL0: Final = {
    "CTR_EL0": ("sctlr", 1 << 15),
    "CNTVCT_EL0": ("cntkctl", 1 << 1),
    "CNTPCT_EL0": ("cntkctl", 1 << 0),
    "CNTFRQ_EL0": ("cntkctl", 3),
    "CNTV_CTL_EL0": ("cntkctl", 1 << 8),
    "CNTV_CVAL_EL0": ("cntkctl", 1 << 8),
    "CNTV_TVAL_EL0": ("cntkctl", 1 << 8),
    "CNTP_CTL_EL0": ("cntkctl", 1 << 9),
    "CNTP_CVAL_EL0": ("cntkctl", 1 << 9),
    "CNTP_TVAL_EL0": ("cntkctl", 1 << 9),
}
"""What EL0 may access, and the bits of the register that let it: any of them."""
_OS_LOCK: Final = BY_NAME["OSLAR_EL1"].encoding
_OS_LOCK_STATUS: Final = BY_NAME["OSLSR_EL1"].encoding
_VBAR: Final = BY_NAME["VBAR_EL1"].encoding

Read = Callable[[Context, AArch64VirtualCpu], int]
Write = Callable[[Context, AArch64VirtualCpu, int], None]


def _timer_name(name: str) -> str:
    """The generic timer's own name of a register."""
    return name.rsplit("_", 1)[0]


_TIMER: Final = frozenset(
    name for name, one in BY_NAME.items() if one.kind == "timers and counters" and not one.feature
)

_READ: Final[dict[str, Read]] = {
    "SCTLR_EL1": lambda _c, v: v.context.sctlr,
    "TCR_EL1": lambda _c, v: v.context.tcr,
    "TTBR0_EL1": lambda _c, v: v.context.ttbr0,
    "TTBR1_EL1": lambda _c, v: v.context.ttbr1,
    "CPACR_EL1": lambda _c, v: v.cpacr,
    "ELR_EL1": lambda _c, v: v.elr,
    "SPSR_EL1": lambda _c, v: v.spsr,
    "ESR_EL1": lambda _c, v: v.esr,
    "FAR_EL1": lambda _c, v: v.far,
    "SP_EL0": lambda _c, v: v.sp_el0,
    "SPSel": lambda _c, v: int(v.own_stack),
    "CurrentEL": lambda _c, _v: 4,
    "DAIF": lambda _c, v: v.registers.daif,
    "TPIDR_EL0": lambda _c, v: v.user_thread,
    "TPIDRRO_EL0": lambda _c, v: v.user_thread_read_only,
    "TPIDR_EL1": lambda _c, v: v.registers.thread,
    "DCZID_EL0": lambda _c, _v: 4,
    "ISR_EL1": lambda _c, _v: 0,
}


def _write_sctlr(context: Context, vcpu: AArch64VirtualCpu, value: int) -> None:
    old, vcpu.context.sctlr = vcpu.context.sctlr, value | _SCTLR_RESERVED
    if (old ^ value) & _SCTLR_TRANSLATION:
        context.translation_changed()


def _write_tcr(context: Context, vcpu: AArch64VirtualCpu, value: int) -> None:
    old, vcpu.context.tcr = vcpu.context.tcr, value
    if old != value and vcpu.context.sctlr & 1:
        context.translation_changed()


def _write_lower(context: Context, vcpu: AArch64VirtualCpu, value: int) -> None:
    if vcpu.context.ttbr0 != value:
        vcpu.context.ttbr0 = value
        context.address_space_changed()


def _write_upper(context: Context, vcpu: AArch64VirtualCpu, value: int) -> None:
    if vcpu.context.ttbr1 != value:
        vcpu.context.ttbr1 = value
        context.address_space_changed()


def _set(name: str) -> Write:
    def write(_context: Context, vcpu: AArch64VirtualCpu, value: int) -> None:
        setattr(vcpu, name, value)

    return write


def _write_daif(_context: Context, vcpu: AArch64VirtualCpu, value: int) -> None:
    vcpu.registers.daif = value & x.MASKS


def _write_kernel_thread(_context: Context, vcpu: AArch64VirtualCpu, value: int) -> None:
    vcpu.registers.thread = value


def _write_os_lock(context: Context, vcpu: AArch64VirtualCpu, value: int) -> None:
    vcpu.system[_OS_LOCK_STATUS] = 8 | (value & 1) << 1
    context.debug_changed()


def _write_rights(context: Context, vcpu: AArch64VirtualCpu, value: int) -> None:
    vcpu.cpacr = value
    context.floating_point_changed()


def _write_debug(encoding: int) -> Write:
    def write(context: Context, vcpu: AArch64VirtualCpu, value: int) -> None:
        vcpu.system[encoding] = value
        context.debug_changed()

    return write


def _write_vectors(_context: Context, vcpu: AArch64VirtualCpu, value: int) -> None:
    vcpu.system[_VBAR] = value & ~0x7FF & _MASK


_WRITE: Final[dict[str, Write]] = {
    "SCTLR_EL1": _write_sctlr,
    "TCR_EL1": _write_tcr,
    "TTBR0_EL1": _write_lower,
    "TTBR1_EL1": _write_upper,
    "ELR_EL1": _set("elr"),
    "SPSR_EL1": _set("spsr"),
    "ESR_EL1": _set("esr"),
    "FAR_EL1": _set("far"),
    "SP_EL0": _set("sp_el0"),
    "DAIF": _write_daif,
    "TPIDR_EL0": _set("user_thread"),
    "TPIDRRO_EL0": _set("user_thread_read_only"),
    "TPIDR_EL1": _write_kernel_thread,
    "OSLAR_EL1": _write_os_lock,
    "VBAR_EL1": _write_vectors,
    "CPACR_EL1": _write_rights,
    **{
        name: _write_debug(one.encoding)
        for name, one in BY_NAME.items()
        if name == "MDSCR_EL1" or name.startswith(("DBGBVR", "DBGBCR", "DBGWVR", "DBGWCR"))
    },
}


def _user_may(vcpu: AArch64VirtualCpu, name: str) -> bool:
    """Whether EL0 may access a register now."""
    allowed = _EL0.get(name)
    if allowed is None:
        return False
    where, bits = allowed
    control = vcpu.context.sctlr if where == "sctlr" else vcpu.system.get(BY_NAME["CNTKCTL_EL1"].encoding, 0)
    return bool(control & bits)


def _known(word: int, letter: str) -> str | None:
    """Name of the register, if the guest's processor has it and it has this direction."""
    one = BY_ENCODING.get(named(word))
    if one is None or one.feature or letter not in one.access:
        return None
    return one.name


@handles(
    Operation.READ_SYSTEM_REGISTER,
    Operation.IDENTIFY_PROCESSOR,
    Operation.READ_PERFORMANCE_COUNTER,
    Operation.READ_TIME_STAMP,
    Operation.READ_FLAGS,
)
def read(context: Context, word: int, row: SensitiveInstruction) -> Action | None:
    """MRS."""
    name = _known(word, "r")
    if name is None:
        return None
    vcpu, target = context.vcpu, word & 31
    gpr, advance = vcpu.gpr, vcpu.advance
    encoding = named(word)
    get = _READ.get(name)
    if name in _TIMER and name != "CNTKCTL_EL1":
        timer = _timer_name(name)
        get = lambda c, _v: c.read_timer(timer)  # noqa: E731
    elif get is None:
        get = lambda _c, v: v.system.get(encoding, 0)  # noqa: E731

    def action() -> None:
        if vcpu.level == 0 and not _user_may(vcpu, name):
            raise x.undefined()
        value = get(context, vcpu)
        if target != _ZERO_REGISTER:
            gpr[target] = value & _MASK
        advance()

    return action


@handles(Operation.WRITE_SYSTEM_REGISTER, Operation.WRITE_PAGE_TABLE_BASE, Operation.WRITE_FLAGS)
def write(context: Context, word: int, row: SensitiveInstruction) -> Action | None:
    """MSR (register)."""
    name = _known(word, "w")
    if name is None:
        return None
    vcpu, source = context.vcpu, word & 31
    gpr, advance = vcpu.gpr, vcpu.advance
    encoding = named(word)
    put = _WRITE.get(name)
    if name in _TIMER and name != "CNTKCTL_EL1":
        timer = _timer_name(name)
        put = lambda c, _v, value: c.write_timer(timer, value)  # noqa: E731
    elif put is None:

        def put(_c: Context, v: AArch64VirtualCpu, value: int) -> None:
            v.system[encoding] = value

    def action() -> None:
        if vcpu.level == 0 and not _user_may(vcpu, name):
            raise x.undefined()
        advance()
        put(context, vcpu, gpr[source] if source != _ZERO_REGISTER else 0)

    return action


@handles(Operation.SELECT_STACK)
def select_stack(context: Context, word: int, row: SensitiveInstruction) -> Action | None:
    """MSR SPSel, by a register or an immediate."""
    vcpu = context.vcpu
    immediate = word >> 20 == 0xD50
    source = word & 31

    def action() -> None:
        if vcpu.level == 0:
            raise x.undefined()
        value = word >> 8 & 1 if immediate else vcpu.gpr[source] & 1 if source != _ZERO_REGISTER else 0
        vcpu.advance()
        vcpu.select_stack(bool(value))

    return action
