"""What each sensitive operation of MIPS32 does to a virtual CPU, however it arrived.

Room: `paravirt/operations/mips`. `PREPARE` has a function for every `Operation` that an instruction of the table
stands for: from the word it makes the action, which is kept and done at every trap of that instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from emulator.isa.mips import identity as i
from emulator.isa.mips import registers as r
from emulator.isa.mips.exceptions import MipsException, return_from_exception
from emulator.isa.operation import Operation as O
from paravirt.modes.mips.vcpu import KERNEL_LEVEL, USER_LEVEL

if TYPE_CHECKING:
    from paravirt.modes.mips.hypervisor import MipsHypervisor

Action = Callable[[], None]
Prepare = Callable[["MipsHypervisor", int], Action]
_RANDOM, _INDEX = 0x06, 0x02


def _target(word: int) -> int:
    return word >> 16 & 31


def _name(word: int) -> str:
    place = r.BY_PLACE.get((word >> 11 & 31, word & 7))
    return place.name if place is not None else ""


def _read_register(hypervisor: MipsHypervisor, word: int) -> Action:
    vcpu, target, name = hypervisor.vcpu, _target(word), _name(word)
    gpr, read, advance = vcpu.gpr, vcpu.read, vcpu.registers.advance

    def act() -> None:
        value = read(name)
        if target:
            gpr[target] = value
        advance()

    return act


def _write_register(hypervisor: MipsHypervisor, word: int) -> Action:
    vcpu, source, name = hypervisor.vcpu, _target(word), _name(word)
    gpr, write, advance = vcpu.gpr, vcpu.write, vcpu.registers.advance

    def act() -> None:
        advance()
        write(name, gpr[source])

    return act


def _interrupts(enable: bool) -> Prepare:
    def prepare(hypervisor: MipsHypervisor, word: int) -> Action:
        vcpu, target, shared = hypervisor.vcpu, _target(word), hypervisor.shared
        gpr, advance = vcpu.gpr, vcpu.registers.advance
        value = 1 if enable else 0

        def act() -> None:
            if target:
                gpr[target] = vcpu.status
            shared[0] = value
            advance()

        return act

    return prepare


def _return(hypervisor: MipsHypervisor, _word: int) -> Action:
    vcpu = hypervisor.vcpu
    return lambda: return_from_exception(vcpu)


def _halt(hypervisor: MipsHypervisor, _word: int) -> Action:
    vcpu = hypervisor.vcpu

    def act() -> None:
        vcpu.advance()
        hypervisor.halted()

    return act


def _write_translation(hypervisor: MipsHypervisor, word: int) -> Action:
    vcpu, random = hypervisor.vcpu, word & 0x3F == _RANDOM

    def act() -> None:
        vcpu.advance()
        if random:
            vcpu.write_random_translation()
        else:
            vcpu.write_translation(vcpu.index % vcpu.tlb.size)

    return act


def _read_translation(hypervisor: MipsHypervisor, _word: int) -> Action:
    vcpu = hypervisor.vcpu

    def act() -> None:
        vcpu.advance()
        vcpu.read_translation()

    return act


def _probe(hypervisor: MipsHypervisor, _word: int) -> Action:
    vcpu = hypervisor.vcpu

    def act() -> None:
        vcpu.probe_translation()
        vcpu.advance()

    return act


def _nothing(hypervisor: MipsHypervisor, _word: int) -> Action:
    """Caches: no page is writable and executable, so nothing stale is ever executed."""
    return hypervisor.vcpu.registers.advance


def _hardware_register(hypervisor: MipsHypervisor, word: int) -> Action:
    vcpu, target, number = hypervisor.vcpu, _target(word), word >> 11 & 31

    def act() -> None:
        allowed = vcpu.level == KERNEL_LEVEL or vcpu.hwrena >> number & 1 or vcpu.status & r.STATUS_CU0
        read = _HARDWARE.get(number)
        if read is None or not allowed:
            raise MipsException(r.RI, 0)
        if target:
            vcpu.gpr[target] = read(hypervisor)
        vcpu.advance()

    return act


_HARDWARE: Final[dict[int, Callable[[MipsHypervisor], int]]] = {
    0: lambda _hypervisor: 0,
    1: lambda _hypervisor: i.SYNCI_STEP,
    2: lambda hypervisor: hypervisor.vcpu.board.timer.count,
    3: lambda _hypervisor: i.COUNT_RESOLUTION,
    29: lambda hypervisor: hypervisor.vcpu.registers.user_local,
}


def _banked(hypervisor: MipsHypervisor, word: int) -> Action:
    """RDPGPR and WRPGPR: there is one set of registers, so that both are moves."""
    vcpu, read = hypervisor.vcpu, word >> 21 & 31 == 10
    source, target = word >> 16 & 31, word >> 11 & 31
    del read

    def act() -> None:
        if target:
            vcpu.gpr[target] = vcpu.gpr[source]
        vcpu.advance()

    return act


def _raises(code: int) -> Prepare:
    def prepare(_hypervisor: MipsHypervisor, _word: int) -> Action:
        def act() -> None:
            raise MipsException(code, 0)

        return act

    return prepare


def _coprocessor(_hypervisor: MipsHypervisor, word: int) -> Action:
    unit = 1 if word >> 26 in (0x00, 0x13) else word >> 26 & 3

    def act() -> None:
        raise MipsException(r.CPU, unit)

    return act


PREPARE: Final[dict[O, Prepare]] = {
    O.READ_SYSTEM_REGISTER: _read_register,
    O.WRITE_SYSTEM_REGISTER: _write_register,
    O.DISABLE_INTERRUPTS: _interrupts(False),
    O.ENABLE_INTERRUPTS: _interrupts(True),
    O.RETURN_FROM_EXCEPTION: _return,
    O.RETURN_FROM_DEBUG: _raises(r.RI),
    O.HALT: _halt,
    O.WRITE_TRANSLATION: _write_translation,
    O.READ_TRANSLATION: _read_translation,
    O.PROBE_TRANSLATION: _probe,
    O.MAINTAIN_CACHES: _nothing,
    O.READ_HARDWARE_REGISTER: _hardware_register,
    O.READ_BANKED_REGISTER: _banked,
    O.WRITE_BANKED_REGISTER: _banked,
    O.RAISE_UNDEFINED: _raises(r.RI),
    O.USE_COPROCESSOR: _coprocessor,
    O.SYSTEM_CALL: _raises(r.SYS),
    O.BREAKPOINT: _raises(r.BP),
    O.CONDITIONAL_TRAP: _raises(r.TR),
    O.LOAD_LINKED: _raises(r.RI),
    O.STORE_CONDITIONAL: _raises(r.RI),
}
"""LL and SC never arrive: they run by themselves."""

__all__ = ["PREPARE", "USER_LEVEL"]
