"""Numbers and layouts of Xen's public interface for x86-64 para-virtual guests.

Room: `paravirt/xen`, data. Facts of xen/include/public (xen.h, arch-x86/xen.h, event_channel.h, memory.h, sched.h,
vcpu.h, elfnote.h, io/console.h, errno.h), in words of our own. It knows no guest and no machine.
"""

import struct
from enum import IntEnum
from typing import Final


class Errno(IntEnum):
    """What a hypercall that fails returns, negated (errno.h)."""

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    EIO = 5
    E2BIG = 7
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    EINVAL = 22
    ENOSPC = 28
    ERANGE = 34
    ENOSYS = 38
    ENODATA = 61
    ETIME = 62
    EOPNOTSUPP = 95
    EISCONN = 106


class XenError(Exception):
    """A hypercall is refused: it returns -`errno`."""

    def __init__(self, errno: Errno) -> None:
        super().__init__(errno.name)
        self.errno = errno


DOMID_SELF: Final = 0x7FF0
DOMID_IO: Final = 0x7FF1
DOMID_XEN: Final = 0x7FF2

PAGE: Final = 4096
INVALID_FRAME: Final = (1 << 64) - 1
"""Of the table from machine to pseudo-physical frames: no guest's."""

# Guest-virtual addresses of the hypervisor's part: slots 256..271 of a root table.
HYPERVISOR_START: Final = 0xFFFF_8000_0000_0000
HYPERVISOR_END: Final = 0xFFFF_8800_0000_0000
FIRST_SLOT, LAST_SLOT = 256, 271
MACHINE_TO_PHYSICAL: Final = 0xFFFF_8000_0000_0000
"""Where the guest's kernel finds the table from machine to pseudo-physical frames, read-only."""
DESCRIPTORS: Final = 0xFFFF_8080_0000_0000
"""The descriptor table that the processor reads: 14 pages of the guest's, then the hypervisor's own."""
LOCAL_DESCRIPTORS: Final = DESCRIPTORS + 16 * PAGE
"""The local descriptor table: up to 16 pages of the guest's."""

# Selectors of the hypervisor's part of the descriptor table (arch-x86/xen-x86_64.h).
FLAT_CODE32: Final = 0xE023
FLAT_DATA: Final = 0xE02B
FLAT_CODE64: Final = 0xE033
FIRST_RESERVED_PAGE: Final = 14
FIRST_RESERVED_ENTRY: Final = FIRST_RESERVED_PAGE * 512


class Note(IntEnum):
    """ELF notes of the owner "Xen" (elfnote.h)."""

    INFO = 0
    ENTRY = 1
    HYPERCALL_PAGE = 2
    VIRT_BASE = 3
    PADDR_OFFSET = 4
    XEN_VERSION = 5
    GUEST_OS = 6
    GUEST_VERSION = 7
    LOADER = 8
    PAE_MODE = 9
    FEATURES = 10
    BSD_SYMTAB = 11
    HV_START_LOW = 12
    L1_MFN_VALID = 13
    SUSPEND_CANCEL = 14
    INIT_P2M = 15
    MOD_START_PFN = 16
    SUPPORTED_FEATURES = 17
    PHYS32_ENTRY = 18


class StartInfo:
    """Offsets in `start_info`."""

    MAGIC = 0
    PAGES = 32
    SHARED_INFO = 40
    FLAGS = 48
    STORE_FRAME = 56
    STORE_PORT = 64
    CONSOLE_FRAME = 72
    CONSOLE_PORT = 80
    TABLES = 88
    TABLE_COUNT = 96
    FRAME_LIST = 104
    MODULE = 112
    MODULE_SIZE = 120
    COMMAND_LINE = 128
    COMMAND_LINE_SIZE = 1024
    FIRST_LIST_FRAME = 1152
    LIST_FRAMES = 1160


SIF_MOD_START_PFN: Final = 1 << 3
MAGIC: Final = b"xen-3.0-x86_64"


class Shared:
    """Offsets in the shared information page."""

    VCPU_INFO = 0
    VCPU_INFO_SIZE = 64
    PENDING = 2048
    MASK = 2560
    WALL_VERSION = 3072
    WALL_SECONDS = 3076
    WALL_NANOSECONDS = 3080
    WALL_SECONDS_HIGH = 3084


class VcpuInfo:
    """Offsets in `vcpu_info`."""

    UPCALL_PENDING = 0
    UPCALL_MASK = 1
    SELECTOR = 8
    CR2 = 16
    TIME = 32


class VcpuTime:
    """Offsets in `vcpu_time_info`, 32 bytes."""

    VERSION = 0
    TSC = 8
    SYSTEM_TIME = 16
    MULTIPLIER = 24
    SHIFT = 28
    FLAGS = 29
    SIZE = 32


class ConsoleRing:
    """Offsets in the console's page."""

    INPUT, INPUT_SIZE = 0, 1024
    OUTPUT, OUTPUT_SIZE = 1024, 2048
    INPUT_CONSUMED, INPUT_PRODUCED = 3072, 3076
    OUTPUT_CONSUMED, OUTPUT_PRODUCED = 3080, 3084


class Virq(IntEnum):
    """Virtual interrupts that a port can be bound to."""

    TIMER = 0
    DEBUG = 1
    CONSOLE = 2


VIRQS: Final = 24
PORTS: Final = 4096
"""Ports of the two-level interface: 64 words of 64 bits."""


class Shutdown(IntEnum):
    """Why a domain ends itself."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


UPDATE = struct.Struct("<QQ")
"""`mmu_update`: pointer with the kind of update in its low bits, and value."""
NORMAL_UPDATE, MACHPHYS_UPDATE, PRESERVING_UPDATE = 0, 1, 2
EXTENDED = struct.Struct("<IxxxxQQ")
"""`mmuext_op`: what, and two arguments."""
TRAP = struct.Struct("<BBHxxxxQ")
"""`trap_info`: vector, flags (level in bits 0 and 1, 4 masks events), selector, address."""
CALLBACK = struct.Struct("<HHxxxxQ")
"""`callback_register`: kind, flags, address."""
RETURN_FRAME = struct.Struct("<9Q")
"""What the iret call finds on the stack: RAX, R11, RCX, flags, RIP, CS, RFLAGS, RSP, SS."""
IN_SYSCALL: Final = 1 << 8
"""Of that frame's flags: RCX and R11 are not restored."""
