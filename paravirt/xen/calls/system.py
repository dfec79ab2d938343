"""What a guest asks of the hypervisor as such: version, features, a console without a ring, many calls in one.

Room: `paravirt/xen/calls`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from paravirt.xen import public
from paravirt.xen.identity import VERSION
from paravirt.xen.public import Errno, XenError

if TYPE_CHECKING:
    from paravirt.xen.hypervisor import XenHypervisor

FEATURES: Final = 1 << 4 | 1 << 5 | 1 << 7
"""Roots may lie above 4 GiB; updates can keep accessed and dirty; mappings of grants keep the guest's own bits."""
_ENTRY = struct.Struct("<8Q")
_MOST: Final = 4096
ASSISTS: Final = {3: "roots above 4 GiB", 4: "I/O privilege in RFLAGS", 5: "a flag while the run state is written"}
"""What can be turned on by vm_assist."""
_IO_LEVEL: Final = 4
_MULTICALL, _IRET = 13, 23


def version(hypervisor: XenHypervisor, _argument: int) -> int:
    """The version of the interface. Also asked to have waiting events delivered."""
    return VERSION


def _put(hypervisor: XenHypervisor, at: int, text: bytes, size: int) -> int:
    hypervisor.access.write(at, text.ljust(size, b"\0"))
    return 0


def extra_version(hypervisor: XenHypervisor, argument: int) -> int:
    """What follows the version: whose implementation it is."""
    return _put(hypervisor, argument, b".0-retrap", 16)


def compile_info(hypervisor: XenHypervisor, argument: int) -> int:
    """How it was built: it was not."""
    return _put(hypervisor, argument, b"", 64 + 16 + 32 + 32)


def capabilities(hypervisor: XenHypervisor, argument: int) -> int:
    """Kinds of guests."""
    return _put(hypervisor, argument, b"xen-3.0-x86_64 ", 1024)


def change_set(hypervisor: XenHypervisor, argument: int) -> int:
    """Its source's state."""
    return _put(hypervisor, argument, b"", 64)


def platform_parameters(hypervisor: XenHypervisor, argument: int) -> int:
    """Where the hypervisor's part of the address space begins."""
    hypervisor.access.write_word(argument, public.HYPERVISOR_START)
    return 0


def get_features(hypervisor: XenHypervisor, argument: int) -> int:
    """What is offered, as bits."""
    index = hypervisor.access.read_word(argument, 4)
    if index > 1:
        raise XenError(Errno.EINVAL)
    hypervisor.access.write_word(argument + 4, FEATURES if not index else 0, 4)
    return 0


def page_size(_hypervisor: XenHypervisor, _argument: int) -> int:
    """Bytes."""
    return 4096


def guest_handle(hypervisor: XenHypervisor, argument: int) -> int:
    """The domain's identifier."""
    return _put(hypervisor, argument, bytes(15) + bytes([hypervisor.domain.number & 0xFF]), 16)


def command_line(hypervisor: XenHypervisor, argument: int) -> int:
    """The hypervisor's own: none."""
    return _put(hypervisor, argument, b"", 1024)


def console_write(hypervisor: XenHypervisor, count: int, buffer: int) -> int:
    """Print bytes."""
    hypervisor.console_log(hypervisor.access.read(buffer, min(count, _MOST)))
    return 0


def console_read(_hypervisor: XenHypervisor, _count: int, _buffer: int) -> int:
    """Nothing can be read this way."""
    return 0


def vm_assist(hypervisor: XenHypervisor, command: int, kind: int, _a3: int, _a4: int, _a5: int) -> int:
    """Turn something on (0) or off (1)."""
    if kind not in ASSISTS:
        raise XenError(Errno.EINVAL)
    if command > 1:
        raise XenError(Errno.ENOSYS)
    (hypervisor.domain.assists.discard if command else hypervisor.domain.assists.add)(kind)
    hypervisor.vcpu.io_level_in_flags = _IO_LEVEL in hypervisor.domain.assists
    return 0


def set_io_level(hypervisor: XenHypervisor, argument: int) -> int:
    """The level up to which ports may be used."""
    level = hypervisor.access.read_word(argument, 4)
    if level > 3:
        raise XenError(Errno.EINVAL)
    hypervisor.vcpu.io_level = level
    return 0


def set_io_bitmap(hypervisor: XenHypervisor, argument: int) -> int:
    """Ports that user code may use: accepted, and there are none that answer."""
    if hypervisor.access.read_word(argument + 8, 4) > 65536:
        raise XenError(Errno.EINVAL)
    return 0


def multicall(hypervisor: XenHypervisor, calls: int, count: int, _a3: int, _a4: int, _a5: int) -> int | None:
    """Many calls in one; each gets its own result. A return from the kernel is the end of them."""
    if count > _MOST:
        raise XenError(Errno.EINVAL)
    access, known = hypervisor.access, hypervisor.call_count
    for number in range(count):
        at = calls + number * _ENTRY.size
        what, _result, *arguments = _ENTRY.unpack(access.read(at, _ENTRY.size))
        access.translate(at + 8, True)
        if what == _IRET:
            hypervisor.vcpu.return_from_kernel()
            return None
        result: int | None = -int(Errno.ENOSYS)
        if what < known and what != _MULTICALL:
            hypervisor.count_within(what)
            result = hypervisor.call(what, *arguments[:5])
        access.write_word(at + 8, result or 0)
    return 0


def iret(hypervisor: XenHypervisor, _a1: int, _a2: int, _a3: int, _a4: int, _a5: int) -> None:
    """Return from a handler."""
    hypervisor.vcpu.return_from_kernel()
