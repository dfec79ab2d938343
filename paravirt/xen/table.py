"""The hypercalls: one table of what is offered, offered in part, and refused, with the reason and the handler of each.

Room: `paravirt/xen`. Dispatch and documentation read this table (`python -m bt.docs`). Numbers and names are those of
Xen's public headers. A call with operations has a table of them; which argument says the operation is the call's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from paravirt.xen.calls import events, exchange, grants, memory, scheduling, segments, system
from paravirt.xen.public import Errno, XenError

if TYPE_CHECKING:
    from paravirt.xen.hypervisor import XenHypervisor


class Offer(Enum):
    """How far a call is offered."""

    OFFERED = "offered"
    PARTLY = "in part"
    REFUSED = "refused"


class InXen(Enum):
    """Whom Xen offers a call."""

    EVERY = "every guest"
    ADMINISTRATOR = "the domain that administers the host"
    HARDWARE = "guests of hardware virtualisation"
    OPTIONAL = "every guest, where Xen was built and started so"
    DEVICES = "guests that were given a device"
    OLD = "every guest, for compatibility"


_Call = Callable[..., "int | None"]
OFFERED, PARTLY, REFUSED = Offer.OFFERED, Offer.PARTLY, Offer.REFUSED


@dataclass(frozen=True, slots=True)
class Operation:
    """A hypercall, or one of the operations of one."""

    number: int
    name: str
    offer: Offer
    why: str = ""
    """What is left out of it, or why it is refused."""
    handler: Callable[..., Any] | None = None
    errno: Errno = Errno.ENOSYS
    """What it returns where it is refused."""
    in_xen: InXen = InXen.EVERY


@dataclass(frozen=True, slots=True)
class Hypercall(Operation):
    """A hypercall, with the operations that one of its arguments chooses."""

    operations: tuple[Operation, ...] = ()
    prepare: Callable[[XenHypervisor], _Call] | None = None
    """Makes of the handler what one guest's calls are dispatched to, where that is faster."""


_UNKNOWN = "no device or state of that kind is given to these guests"
_PRIVILEGED = "for the domain that administers the host, which these guests are not"
_HARDWARE = "for guests of hardware virtualisation"


_IN_XEN = {_PRIVILEGED: InXen.ADMINISTRATOR, _HARDWARE: InXen.HARDWARE, _UNKNOWN: InXen.DEVICES}


def _refused(number: int, name: str, why: str, errno: Errno = Errno.ENOSYS) -> Operation:
    return Operation(number, name, REFUSED, why, None, errno, _IN_XEN.get(why, InXen.EVERY))


EXTENDED_OPERATIONS: tuple[Operation, ...] = (
    *(Operation(level - 1, f"PIN_L{level}_TABLE", OFFERED, "", partial(memory.pin, level)) for level in range(1, 5)),
    Operation(4, "UNPIN_TABLE", OFFERED, "", memory.unpin),
    Operation(5, "NEW_BASEPTR", OFFERED, "", memory.new_base),
    Operation(6, "TLB_FLUSH_LOCAL", OFFERED, "", memory.flush),
    Operation(7, "INVLPG_LOCAL", OFFERED, "all translations are forgotten", memory.flush),
    Operation(8, "TLB_FLUSH_MULTI", OFFERED, "", memory.flush),
    Operation(9, "INVLPG_MULTI", OFFERED, "all translations are forgotten", memory.flush),
    Operation(10, "TLB_FLUSH_ALL", OFFERED, "", memory.flush),
    Operation(11, "INVLPG_ALL", OFFERED, "all translations are forgotten", memory.flush),
    Operation(
        12, "FLUSH_CACHE", REFUSED, "a guest without a device has no caches to flush", memory.flush_cache, Errno.EACCES
    ),
    Operation(13, "SET_LDT", OFFERED, "", memory.set_ldt),
    Operation(15, "NEW_USER_BASEPTR", OFFERED, "", memory.new_user_base),
    Operation(16, "CLEAR_PAGE", OFFERED, "", memory.clear_page),
    Operation(17, "COPY_PAGE", OFFERED, "", memory.copy_page),
    Operation(18, "FLUSH_CACHE_GLOBAL", REFUSED, "as FLUSH_CACHE", memory.flush_cache, Errno.EACCES),
    _refused(19, "MARK_SUPER", "there are no large pages", Errno.EOPNOTSUPP),
    _refused(20, "UNMARK_SUPER", "there are no large pages", Errno.EOPNOTSUPP),
)

MEMORY_OPERATIONS: tuple[Operation, ...] = (
    Operation(0, "increase_reservation", PARTLY, "single pages only", memory.increase_reservation),
    Operation(1, "decrease_reservation", PARTLY, "single pages only, that nothing maps", memory.decrease_reservation),
    Operation(2, "maximum_ram_page", OFFERED, "", memory.maximum_ram_page),
    Operation(3, "current_reservation", OFFERED, "", memory.current_reservation),
    Operation(4, "maximum_reservation", OFFERED, "", memory.maximum_reservation),
    _refused(5, "machphys_mfn_list", "the table is mapped in every kernel's root already"),
    Operation(6, "populate_physmap", PARTLY, "single pages only", memory.populate_physmap),
    _refused(7, "add_to_physmap", _HARDWARE),
    Operation(9, "memory_map", OFFERED, "", memory.memory_map),
    _refused(10, "machine_memory_map", _PRIVILEGED, Errno.EPERM),
    Operation(11, "exchange", PARTLY, "no frames that lie together", exchange.exchange),
    Operation(12, "machphys_mapping", OFFERED, "", memory.machphys_mapping),
    _refused(15, "remove_from_physmap", _HARDWARE),
)

VERSION_OPERATIONS: tuple[Operation, ...] = (
    Operation(0, "version", OFFERED, "", system.version),
    Operation(1, "extraversion", OFFERED, "", system.extra_version),
    Operation(2, "compile_info", OFFERED, "empty", system.compile_info),
    Operation(3, "capabilities", OFFERED, "", system.capabilities),
    Operation(4, "changeset", OFFERED, "empty", system.change_set),
    Operation(5, "platform_parameters", OFFERED, "", system.platform_parameters),
    Operation(6, "get_features", OFFERED, "", system.get_features),
    Operation(7, "pagesize", OFFERED, "", system.page_size),
    Operation(8, "guest_handle", OFFERED, "", system.guest_handle),
    Operation(9, "commandline", OFFERED, "empty", system.command_line),
    _refused(10, "build_id", "there is none", Errno.ENODATA),
)

SCHEDULER_OPERATIONS: tuple[Operation, ...] = (
    Operation(0, "yield", OFFERED, "", scheduling.yield_),
    Operation(1, "block", OFFERED, "", scheduling.block),
    Operation(
        2, "shutdown", PARTLY, "a suspended guest cannot be resumed: SHUTDOWN_suspend ends it", scheduling.shutdown
    ),
    Operation(3, "poll", OFFERED, "", scheduling.poll),
    _refused(4, "remote_shutdown", _PRIVILEGED, Errno.EPERM),
    Operation(5, "shutdown_code", OFFERED, "it is not kept", scheduling.yield_),
    _refused(6, "watchdog", "a run has limits of its own"),
    _refused(7, "pin_override", _PRIVILEGED, Errno.EPERM),
)

VCPU_OPERATIONS: tuple[Operation, ...] = (
    Operation(0, "initialise", PARTLY, "there is one virtual CPU", scheduling.initialise),
    Operation(1, "up", OFFERED, "", scheduling.up),
    _refused(2, "down", "the only virtual CPU stays up", Errno.EINVAL),
    Operation(3, "is_up", OFFERED, "", scheduling.is_up),
    Operation(4, "get_runstate_info", OFFERED, "", scheduling.get_runstate),
    Operation(
        5, "register_runstate_memory_area", PARTLY, "written once: no time is stolen", scheduling.register_runstate
    ),
    Operation(6, "set_periodic_timer", OFFERED, "", scheduling.set_periodic),
    Operation(7, "stop_periodic_timer", OFFERED, "", scheduling.stop_periodic),
    Operation(8, "set_singleshot_timer", OFFERED, "", scheduling.set_singleshot),
    Operation(9, "stop_singleshot_timer", OFFERED, "", scheduling.stop_singleshot),
    Operation(10, "register_vcpu_info", OFFERED, "", scheduling.register_info),
    _refused(11, "send_nmi", "there are no NMIs"),
    _refused(12, "get_physid", _PRIVILEGED, Errno.EINVAL),
    _refused(13, "register_vcpu_time_memory_area", "user code takes the time by a system call"),
)

EVENT_OPERATIONS: tuple[Operation, ...] = (
    Operation(0, "bind_interdomain", OFFERED, "", events.bind_interdomain),
    Operation(1, "bind_virq", OFFERED, "", events.bind_virq),
    Operation(2, "bind_pirq", REFUSED, _UNKNOWN, events.bind_pirq, Errno.EINVAL),
    Operation(3, "close", OFFERED, "", events.close),
    Operation(4, "send", OFFERED, "", events.send),
    Operation(5, "status", OFFERED, "", events.status),
    Operation(6, "alloc_unbound", OFFERED, "", events.alloc_unbound),
    Operation(7, "bind_ipi", OFFERED, "", events.bind_ipi),
    Operation(8, "bind_vcpu", OFFERED, "", events.bind_vcpu),
    Operation(9, "unmask", OFFERED, "", events.unmask),
    Operation(10, "reset", OFFERED, "", events.reset),
    Operation(11, "init_control", OFFERED, "", events.init_control),
    Operation(12, "expand_array", OFFERED, "", events.expand_array),
    Operation(13, "set_priority", OFFERED, "", events.set_priority),
)

GRANT_OPERATIONS: tuple[Operation, ...] = (
    Operation(0, "map_grant_ref", PARTLY, "whole pages; no bits of the guest's own in the entry", grants.map_),
    Operation(1, "unmap_grant_ref", OFFERED, "", grants.unmap),
    Operation(2, "setup_table", OFFERED, "", grants.setup_table),
    _refused(3, "dump_table", "nobody reads the hypervisor's own log", Errno.EPERM),
    _refused(4, "transfer", "frames change hands by the balloon only", Errno.EOPNOTSUPP),
    Operation(5, "copy", PARTLY, "no transitive grants", grants.copy),
    Operation(6, "query_size", OFFERED, "", grants.query_size),
    Operation(7, "unmap_and_replace", OFFERED, "", grants.unmap_and_replace),
    Operation(8, "set_version", OFFERED, "", grants.set_version),
    Operation(9, "get_status_frames", OFFERED, "", grants.status_frames),
    Operation(10, "get_version", OFFERED, "", grants.get_version),
    Operation(11, "swap_grant_ref", OFFERED, "", grants.swap),
    _refused(12, "cache_flush", "caches are coherent"),
)

CONSOLE_OPERATIONS: tuple[Operation, ...] = (
    Operation(0, "write", OFFERED, "", system.console_write),
    Operation(1, "read", PARTLY, "nothing is ever there: input comes by the ring", system.console_read),
)

CALLBACK_OPERATIONS: tuple[Operation, ...] = (
    Operation(0, "register", OFFERED, "", segments.register_callback),
    Operation(1, "unregister", OFFERED, "", segments.unregister_callback),
)

DEVICE_OPERATIONS: tuple[Operation, ...] = (
    Operation(6, "set_iopl", OFFERED, "", system.set_io_level),
    Operation(7, "set_iobitmap", PARTLY, "user code's ports answer by all ones", system.set_io_bitmap),
)


def _choose(operations: tuple[Operation, ...], arguments: int = 1) -> _Call:
    """A handler for calls whose first argument says what, and whose next ones are the operation's."""
    known = {operation.number: operation for operation in operations}

    def call(hypervisor: XenHypervisor, what: int, second: int, third: int, _a4: int, _a5: int) -> int | None:
        operation = known.get(what & 0xFFFF_FFFF)
        if operation is None:
            raise XenError(Errno.ENOSYS)
        if operation.handler is None:
            raise XenError(operation.errno)
        result: int | None = operation.handler(hypervisor, *(second, third)[:arguments])
        return result

    return call


def _vcpu_op(hypervisor: XenHypervisor, what: int, vcpu: int, argument: int, a4: int, a5: int) -> int | None:
    """The second argument says which virtual CPU."""
    if vcpu:
        raise XenError(Errno.ENOENT)
    return _VCPU(hypervisor, what, argument, 0, a4, a5)


_VCPU = _choose(VCPU_OPERATIONS)

HYPERCALLS: tuple[Hypercall, ...] = (
    Hypercall(0, "set_trap_table", OFFERED, "", segments.set_trap_table),
    Hypercall(
        1,
        "mmu_update",
        PARTLY,
        "of the caller's own tables and frames only",
        memory.mmu_update,
        prepare=memory.prepare_mmu_update,
    ),
    Hypercall(2, "set_gdt", PARTLY, "segments only: pages with gates are refused", segments.set_gdt),
    Hypercall(3, "stack_switch", OFFERED, "", segments.stack_switch),
    Hypercall(4, "set_callbacks", OFFERED, "", segments.set_callbacks),
    Hypercall(5, "fpu_taskswitch", OFFERED, "", segments.fpu_taskswitch),
    Hypercall(6, "sched_op_compat", REFUSED, "replaced by sched_op", in_xen=InXen.OLD),
    Hypercall(7, "platform_op", REFUSED, _PRIVILEGED, errno=Errno.EPERM, in_xen=InXen.ADMINISTRATOR),
    Hypercall(8, "set_debugreg", PARTLY, "breakpoints of ports are not armed", segments.set_debugreg),
    Hypercall(9, "get_debugreg", OFFERED, "", segments.get_debugreg),
    Hypercall(10, "update_descriptor", PARTLY, "segments only: gates are refused", segments.update_descriptor),
    Hypercall(12, "memory_op", PARTLY, "", _choose(MEMORY_OPERATIONS), operations=MEMORY_OPERATIONS),
    Hypercall(13, "multicall", OFFERED, "", system.multicall),
    Hypercall(14, "update_va_mapping", OFFERED, "", memory.update_va_mapping),
    Hypercall(15, "set_timer_op", OFFERED, "", scheduling.set_timer_op),
    Hypercall(16, "event_channel_op_compat", REFUSED, "replaced by event_channel_op", in_xen=InXen.OLD),
    Hypercall(17, "xen_version", OFFERED, "", _choose(VERSION_OPERATIONS), operations=VERSION_OPERATIONS),
    Hypercall(18, "console_io", OFFERED, "", _choose(CONSOLE_OPERATIONS, 2), operations=CONSOLE_OPERATIONS),
    Hypercall(19, "physdev_op_compat", REFUSED, "replaced by physdev_op", in_xen=InXen.OLD),
    Hypercall(20, "grant_table_op", PARTLY, "", _choose(GRANT_OPERATIONS, 2), operations=GRANT_OPERATIONS),
    Hypercall(
        21, "vm_assist", PARTLY, "roots above 4 GiB, I/O privilege in RFLAGS, the run state's flag", system.vm_assist
    ),
    Hypercall(22, "update_va_mapping_otherdomain", REFUSED, _PRIVILEGED, errno=Errno.EPERM, in_xen=InXen.ADMINISTRATOR),
    Hypercall(23, "iret", OFFERED, "", system.iret),
    Hypercall(24, "vcpu_op", PARTLY, "one virtual CPU", _vcpu_op, operations=VCPU_OPERATIONS),
    Hypercall(25, "set_segment_base", OFFERED, "", segments.set_segment_base),
    Hypercall(
        26, "mmuext_op", OFFERED, "", memory.mmuext_op, operations=EXTENDED_OPERATIONS, prepare=memory.prepare_mmuext_op
    ),
    Hypercall(27, "xsm_op", REFUSED, "there are no security modules", in_xen=InXen.OPTIONAL),
    Hypercall(28, "nmi_op", REFUSED, "there are no NMIs"),
    Hypercall(29, "sched_op", PARTLY, "", _choose(SCHEDULER_OPERATIONS), operations=SCHEDULER_OPERATIONS),
    Hypercall(30, "callback_op", OFFERED, "", _choose(CALLBACK_OPERATIONS), operations=CALLBACK_OPERATIONS),
    Hypercall(31, "xenoprof_op", REFUSED, "profiles come from retrap itself", in_xen=InXen.OPTIONAL),
    Hypercall(
        32, "event_channel_op", PARTLY, "one virtual CPU", _choose(EVENT_OPERATIONS), operations=EVENT_OPERATIONS
    ),
    Hypercall(33, "physdev_op", PARTLY, _UNKNOWN, _choose(DEVICE_OPERATIONS), operations=DEVICE_OPERATIONS),
    Hypercall(34, "hvm_op", REFUSED, _HARDWARE, in_xen=InXen.HARDWARE),
    Hypercall(35, "sysctl", REFUSED, _PRIVILEGED, errno=Errno.EPERM, in_xen=InXen.ADMINISTRATOR),
    Hypercall(36, "domctl", REFUSED, _PRIVILEGED, errno=Errno.EPERM, in_xen=InXen.ADMINISTRATOR),
    Hypercall(37, "kexec_op", REFUSED, _PRIVILEGED, errno=Errno.EPERM, in_xen=InXen.ADMINISTRATOR),
    Hypercall(39, "argo_op", REFUSED, "there are no such messages", errno=Errno.EOPNOTSUPP, in_xen=InXen.OPTIONAL),
    Hypercall(
        40, "xenpmu_op", REFUSED, "there are no performance counters", errno=Errno.EOPNOTSUPP, in_xen=InXen.OPTIONAL
    ),
    Hypercall(41, "dm_op", REFUSED, _HARDWARE, in_xen=InXen.HARDWARE),
    Hypercall(42, "hypfs_op", REFUSED, _PRIVILEGED, in_xen=InXen.ADMINISTRATOR),
)
"""Every hypercall of the public headers that is still one."""


def _refuse(errno: Errno) -> _Call:
    def call(_hypervisor: XenHypervisor, *_arguments: int) -> int:
        raise XenError(errno)

    return call


def _refuse_extended(errno: Errno) -> Callable[..., None]:
    def call(_hypervisor: XenHypervisor, *_arguments: int) -> None:
        raise XenError(errno)

    return call


def handlers(hypervisor: XenHypervisor) -> list[tuple[str, _Call]]:
    """The name and the handler of each call, by number; a handler takes five arguments."""
    known = {call.number: call for call in HYPERCALLS}
    made: list[tuple[str, _Call]] = []
    for number in range(max(known) + 1):
        row = known.get(number)
        if row is None:
            made.append((f"call {number}", partial(_refuse(Errno.ENOSYS), hypervisor)))
        else:
            handler = partial(row.handler or _refuse(row.errno), hypervisor)
            made.append((row.name, row.prepare(hypervisor) if row.prepare else handler))
    return made


def extended_handlers() -> dict[int, Callable[..., None]]:
    """The handlers of mmuext_op's operations."""
    return {row.number: row.handler or _refuse_extended(row.errno) for row in EXTENDED_OPERATIONS}


__all__ = ["HYPERCALLS", "Hypercall", "Offer", "Operation", "extended_handlers", "handlers"]
