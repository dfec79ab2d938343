"""The modes of virtual CPU there are, by instruction set: what each adds to the one event loop.

Room: `paravirt`. A mode is a `paravirt.hypervisor.Hypervisor` of its own: its virtual CPU, the decoding and doing of an
operation at a site, delivery and return, and how its memory is shadowed. It is imported when a guest needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from emulator.errors import BadImage
from emulator.isa.operation import Operation

if TYPE_CHECKING:
    from emulator.engine.protocol import Capabilities
    from emulator.machine import Machine
    from paravirt.hypervisor import Hypervisor
    from paravirt.translator import Translator


def _x86_64() -> type[Hypervisor]:
    from paravirt.modes.x86.hypervisor import X86Hypervisor

    return X86Hypervisor


def _i386() -> type[Hypervisor]:
    from paravirt.modes.i386.hypervisor import I386Hypervisor

    return I386Hypervisor


def _armv7() -> type[Hypervisor]:
    from paravirt.modes.arm.hypervisor import ArmHypervisor

    return ArmHypervisor


def _mips32() -> type[Hypervisor]:
    from paravirt.modes.mips.hypervisor import MipsHypervisor

    return MipsHypervisor


def _aarch64() -> type[Hypervisor]:
    from paravirt.modes.aarch64.hypervisor import AArch64Hypervisor

    return AArch64Hypervisor


MODES: dict[str, Callable[[], type[Hypervisor]]] = {
    "x86-64": _x86_64,
    "i386": _i386,
    "armv7": _armv7,
    "mips32": _mips32,
    "aarch64": _aarch64,
}
"""How to load the hypervisor of each instruction set."""


MUST_TRAP: tuple[tuple[str, Operation], ...] = (
    ("time_stamp_faults", Operation.READ_TIME_STAMP),
    ("shows_selectors", Operation.READ_SEGMENT_SELECTOR),
)
"""Capabilities of an engine without which an operation must have a planted trap, whatever tactic there is for it."""


def must_trap(capabilities: Capabilities) -> frozenset[Operation]:
    """The operations that need planted traps on an engine, beside those that need them everywhere."""
    return frozenset(operation for name, operation in MUST_TRAP if not getattr(capabilities, name))


DEAR = 10.0
"""Microseconds from which on an exit costs more than what avoids a few."""

WITHOUT_EXIT: tuple[tuple[str, bool, Operation], ...] = (
    ("open_bases", True, Operation.SWAP_GS),
    ("open_bases", True, Operation.WRITE_MODEL_SPECIFIC_REGISTER),
    ("crosses", True, Operation.RETURN_FROM_SYSTEM_CALL),
    ("crosses", True, Operation.RETURN_FROM_EXCEPTION),
    ("crosses", True, Operation.INVALIDATE_PAGE),
    ("opens_ports", True, Operation.READ_PORT),
    ("steady_counter", True, Operation.READ_TIME_STAMP),
    ("shows_selectors", False, Operation.READ_SEGMENT_SELECTOR),
)
"""What a capability of an engine must be for an operation to be done in the guest, where exits are dear."""


def without_exit(capabilities: Capabilities) -> frozenset[Operation]:
    """The operations that fixups do in the guest on an engine, beside those that they do everywhere."""
    if capabilities.exit_cost < DEAR:
        return frozenset()
    return frozenset(operation for name, value, operation in WITHOUT_EXIT if getattr(capabilities, name) is value)


def hypervisor_for(machine: Machine, translator: Translator, *, timed: bool = False, technique: str = "") -> Hypervisor:
    """The hypervisor of a machine's instruction set, with a technique of memory virtualisation or its own.

    Raises `BadImage` where there is none yet, `UsageError` for a technique that such guests cannot have.
    """
    load = MODES.get(machine.platform.isa)
    if load is None:
        raise BadImage(
            f"{machine.platform.isa} guests cannot be run deprivileged yet; those of {', '.join(MODES)} can be"
        )
    hypervisor = load()(machine, translator, timed=timed)
    if technique:
        hypervisor.choose_technique(technique)
    return hypervisor
