"""The reference: the guest at full privilege on the same machine, unmodified; a room for each instruction set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from emulator.errors import EngineMissing
from emulator.native.cpu import NativeCpu

if TYPE_CHECKING:
    from emulator.machine import Machine


def _x86_64() -> type[NativeCpu]:
    from emulator.native.x86 import X86NativeCpu

    return X86NativeCpu


def _i386() -> type[NativeCpu]:
    from emulator.native.i386 import I386NativeCpu

    return I386NativeCpu


def _armv7() -> type[NativeCpu]:
    from emulator.native.arm import ArmNativeCpu

    return ArmNativeCpu


def _aarch64() -> type[NativeCpu]:
    from emulator.native.aarch64 import AArch64NativeCpu

    return AArch64NativeCpu


def _mips32() -> type[NativeCpu]:
    from emulator.native.mips import MipsNativeCpu

    return MipsNativeCpu


NATIVES: dict[str, Callable[[], type[NativeCpu]]] = {
    "x86-64": _x86_64,
    "i386": _i386,
    "armv7": _armv7,
    "aarch64": _aarch64,
    "mips32": _mips32,
}
"""How to load the reference of each instruction set."""


def native_for(machine: Machine) -> NativeCpu:
    """The reference CPU of a machine's instruction set. Raises `EngineMissing` where there is none."""
    load = NATIVES.get(machine.platform.isa)
    if load is None:
        raise EngineMissing(
            f"{machine.platform.isa} guests cannot be run at full privilege; take another --virt than native"
        )
    return load()(machine)


__all__ = ["NATIVES", "NativeCpu", "native_for"]
