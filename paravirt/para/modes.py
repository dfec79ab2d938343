"""The para-virtual hypervisor of each instruction set, loaded when a guest needs it.

Room: `paravirt/para`. As `paravirt.modes`, for guests that were ported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from emulator.errors import BadImage

if TYPE_CHECKING:
    from emulator.machine import Machine
    from paravirt.para.guest import ParaGuest
    from paravirt.translator import Translator


def _x86_64() -> type[ParaGuest]:
    from paravirt.para.x86 import X86Para

    return X86Para


def _i386() -> type[ParaGuest]:
    from paravirt.para.x86 import I386Para

    return I386Para


def _aarch64() -> type[ParaGuest]:
    from paravirt.para.aarch64 import AArch64Para

    return AArch64Para


def _armv7() -> type[ParaGuest]:
    from paravirt.para.arm import ArmPara

    return ArmPara


def _mips32() -> type[ParaGuest]:
    from paravirt.para.mips import MipsPara

    return MipsPara


PARA_MODES: dict[str, Callable[[], type[ParaGuest]]] = {
    "x86-64": _x86_64,
    "i386": _i386,
    "aarch64": _aarch64,
    "armv7": _armv7,
    "mips32": _mips32,
}
"""How to load the hypervisor of each instruction set."""


def para_hypervisor_for(
    machine: Machine, translator: Translator, *, timed: bool = False, technique: str = ""
) -> ParaGuest:
    """The hypervisor of a para-virtual guest. Raises `BadImage` where there is none for its instruction set."""
    load = PARA_MODES.get(machine.platform.isa)
    if load is None:
        raise BadImage(
            f"{machine.platform.isa} guests cannot be para-virtual yet; those of {', '.join(PARA_MODES)} can be"
        )
    hypervisor = load()(machine, translator, timed=timed)
    if technique:
        hypervisor.choose_technique(technique)
    return hypervisor
