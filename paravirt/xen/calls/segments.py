"""Where the kernel is entered and what its processor looks like: traps, callbacks, descriptors, debug registers.

Room: `paravirt/xen/calls`. Addresses must be ones that the processor has; selectors must not be the hypervisor's own.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from paravirt.xen import descriptors
from paravirt.xen.breakpoints import control_allowed
from paravirt.xen.emulate import canonical
from paravirt.xen.public import (
    CALLBACK,
    FIRST_RESERVED_ENTRY,
    FLAT_CODE32,
    FLAT_CODE64,
    FLAT_DATA,
    TRAP,
    Errno,
    XenError,
)
from paravirt.xen.vcpu import FS, GS, Entry, Gate, Vcpu

if TYPE_CHECKING:
    from paravirt.xen.hypervisor import XenHypervisor

_CALLBACKS: Final = {
    0: "event_entry",
    1: "failsafe_entry",
    2: "syscall_entry",
    4: "nmi_entry",
    5: "sysenter_entry",
    7: "syscall32_entry",
}
"""The kinds of callback_register."""
_KEEPS: Final = frozenset({0, 4})
"""Kinds that cannot be taken back."""


def selector_allowed(selector: int) -> bool:
    """Whether a gate may load this selector: the guest's own, or one of the flat segments."""
    return (
        selector >> 3 < FIRST_RESERVED_ENTRY or selector & 4 != 0 or selector in (FLAT_CODE32, FLAT_CODE64, FLAT_DATA)
    )


def set_trap_table(hypervisor: XenHypervisor, table: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
    """The handlers of exceptions and INT, up to an entry without address; no table forgets all."""
    gates = hypervisor.vcpu.gates
    if not table:
        gates[:] = [None] * 256
        return 0
    for number in range(257):
        vector, flags, selector, address = TRAP.unpack(hypervisor.access.read(table + number * TRAP.size, TRAP.size))
        if not address:
            return 0
        if not canonical(address):
            raise XenError(Errno.EINVAL)
        if not selector_allowed(selector | 3):
            raise XenError(Errno.EPERM)
        gates[vector] = Gate(address, flags & 3, flags & 4 != 0)
    raise XenError(Errno.EINVAL)


def set_gdt(hypervisor: XenHypervisor, frames_at: int, entries: int, _a3: int, _a4: int, _a5: int) -> int:
    """The machine frames of the descriptor table."""
    if entries > FIRST_RESERVED_ENTRY:
        raise XenError(Errno.EINVAL)
    count = -(-entries // 512)
    frames = struct.unpack(f"<{count}Q", hypervisor.access.read(frames_at, count * 8)) if count else ()
    descriptors.set_table(hypervisor.domain, frames)
    hypervisor.domain.settle_tables()
    return 0


def update_descriptor(hypervisor: XenHypervisor, place: int, word: int, _a3: int, _a4: int, _a5: int) -> int:
    """Store one descriptor, at a machine address."""
    descriptors.update(hypervisor.domain, place, word)
    return 0


def stack_switch(hypervisor: XenHypervisor, _selector: int, stack: int, _a3: int, _a4: int, _a5: int) -> int:
    """The stack that user code's exceptions find."""
    if not canonical(stack):
        raise XenError(Errno.EINVAL)
    hypervisor.vcpu.kernel_stack = stack
    return 0


def set_callbacks(hypervisor: XenHypervisor, event: int, failsafe: int, syscall: int, _a4: int, _a5: int) -> int:
    """Where events, failed returns and system calls are taken."""
    if not (canonical(event) and canonical(failsafe) and canonical(syscall)):
        raise XenError(Errno.EINVAL)
    vcpu = hypervisor.vcpu
    vcpu.event_entry = Entry(event, True)
    vcpu.failsafe_entry = Entry(failsafe, True)
    vcpu.syscall_entry = Entry(syscall, False)
    return 0


def register_callback(hypervisor: XenHypervisor, argument: int) -> int:
    """The same, one by one."""
    kind, flags, address = CALLBACK.unpack(hypervisor.access.read(argument, CALLBACK.size))
    if not canonical(address):
        raise XenError(Errno.EINVAL)
    if kind not in _CALLBACKS:
        raise XenError(Errno.ENOSYS)
    setattr(hypervisor.vcpu, _CALLBACKS[kind], Entry(address, flags & 1 != 0))
    return 0


def unregister_callback(hypervisor: XenHypervisor, argument: int) -> int:
    """Take one back."""
    kind = hypervisor.access.read_word(argument, 2)
    if kind not in _CALLBACKS:
        raise XenError(Errno.ENOSYS)
    if kind in _KEEPS and kind != 4:
        raise XenError(Errno.EINVAL)
    setattr(hypervisor.vcpu, _CALLBACKS[kind], None)
    return 0


def set_segment_base(hypervisor: XenHypervisor, which: int, base: int, _a3: int, _a4: int, _a5: int) -> int:
    """The base of FS, of user code's GS, or of the kernel's; or user code's selector of GS."""
    vcpu, registers = hypervisor.vcpu, hypervisor.vcpu.registers
    if which < 3 and not canonical(base):
        raise XenError(Errno.EINVAL)
    if which == 0:
        registers.set_segment_base(FS, base)
    elif which == 1:
        vcpu.gs_user = base
    elif which == 2:
        registers.set_segment_base(GS, base)
    elif which == 3:
        _load_user_gs(vcpu, base & 0xFFFF)
    else:
        raise XenError(Errno.EINVAL)
    return 0


def _load_user_gs(vcpu: Vcpu, selector: int) -> None:
    """User code's GS: a selector that the tables do not have is none."""
    kernel = vcpu.registers.segment_base(GS)
    found = vcpu.segment(selector) if selector & ~3 else None
    if found is None:
        vcpu.registers.set_segment(GS, 0, kernel, 0, 0)
        vcpu.gs_user = 0
    else:
        vcpu.registers.set_segment(GS, selector, kernel, found.limit, found.attributes)
        vcpu.gs_user = found.base


def fpu_taskswitch(hypervisor: XenHypervisor, on: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
    """CR0.TS."""
    hypervisor.set_task_switched(on & 0xFFFF_FFFF != 0)
    return 0


def set_debug(vcpu: Vcpu, number: int, value: int) -> bool:
    """Store a debug register; False where the value cannot be one."""
    if number < 4:
        if not canonical(value) or 0xFFFF_8000_0000_0000 <= value < 0xFFFF_8800_0000_0000:
            return False
        vcpu.debug[number] = value
    elif number in (4, 6):
        vcpu.debug[6] = value & 0xE00F | 0xFFFF_0FF0
    else:
        if value >> 32 or not control_allowed(value, vcpu.cr4):
            return False
        vcpu.debug[7] = value & 0xFFFF_2BFF | 0x400
    if number not in (4, 6):
        vcpu.arm_breakpoints()
    return True


def set_debugreg(hypervisor: XenHypervisor, number: int, value: int, _a3: int, _a4: int, _a5: int) -> int:
    """A debug register."""
    if number > 7:
        raise XenError(Errno.EINVAL)
    if not set_debug(hypervisor.vcpu, number, value):
        raise XenError(Errno.EPERM)
    return 0


def get_debugreg(hypervisor: XenHypervisor, number: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
    """A debug register."""
    if number > 7:
        return -int(Errno.EINVAL)
    return hypervisor.vcpu.debug[6 if number == 4 else 7 if number == 5 else number]
