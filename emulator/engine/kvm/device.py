"""/dev/kvm, a virtual machine in it, and its memory.

Room: `emulator/engine/kvm`. Every system call on KVM's descriptors but KVM_RUN is here. A host without the
device, without rights to it or without what the engine needs raises `EngineMissing` in one sentence.
"""

import ctypes
import fcntl
import grp
import mmap
import os
import platform
import struct
from bisect import bisect_right
from collections.abc import Callable

from emulator.engine.kvm import api
from emulator.errors import EngineMissing
from emulator.isa.x86.identity import identify

PATH = "/dev/kvm"
_ROOM_FOR_TSS = 0xFFFB_D000
"""Three pages that KVM needs on old Intel processors; guests have no memory there (at most 3 GiB)."""
_LEAVES = 256
_DONTNEED = 4
_MMU_PAGES = 1 << 16
_INSTEAD = "run the guest with --engine unicorn"
_NEEDED = {
    api.CAP_SYNC_REGS: "registers in the shared page (KVM_CAP_SYNC_REGS)",
    api.CAP_IMMEDIATE_EXIT: "immediate exits (KVM_CAP_IMMEDIATE_EXIT)",
    api.CAP_DEBUGREGS: "debug registers (KVM_CAP_DEBUGREGS)",
}

Memory = tuple[int, int, memoryview, bool, int]
"""First physical address, end, contents in 64-bit words, whether the host's mapping is shared, the host's address."""
Read = Callable[[int, int], int]
Write = Callable[[int, int, int], None]

_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def open_device(path: str = PATH) -> int:
    """A descriptor of the device, which can do what the engine needs. Raises `EngineMissing`."""
    if platform.machine() != "x86_64":
        raise EngineMissing(
            f"the KVM engine runs x86-64 guests on x86-64 hosts, and this is {platform.machine()}; {_INSTEAD}"
        )
    try:
        device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        raise EngineMissing(
            f"{path} cannot be opened for reading and writing: {_who_may(path)}, or {_INSTEAD}"
        ) from None
    except FileNotFoundError:
        raise EngineMissing(f"{path} does not exist: this host offers no KVM; {_INSTEAD}") from None
    except OSError as error:
        raise EngineMissing(f"{path} does not open ({error.strerror}); {_INSTEAD}") from None
    try:
        _check(device, path)
    except BaseException:
        os.close(device)
        raise
    return device


def _who_may(path: str) -> str:
    """What gives a user the rights to a file that is there."""
    try:
        status = os.stat(path)
    except OSError:
        return "ask its owner for the rights"
    if status.st_mode & 0o060 != 0o060:
        return f"its mode is {status.st_mode & 0o777:04o}; have its owner open it to a group of yours"
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return f"join the group {group}, which may"


def _check(device: int, path: str) -> None:
    try:
        version = fcntl.ioctl(device, api.GET_API_VERSION, 0)
    except OSError as error:
        raise EngineMissing(f"{path} is not KVM ({error.strerror}); {_INSTEAD}") from None
    if version != api.API_VERSION:
        raise EngineMissing(f"{path} has API version {version}, not {api.API_VERSION}; {_INSTEAD}")
    for number, what in _NEEDED.items():
        if not fcntl.ioctl(device, api.CHECK_EXTENSION, number):
            raise EngineMissing(f"{path} has no {what}: a newer Linux has; {_INSTEAD}")


class Vm:
    """One virtual machine with one processor, and the memory and devices at its physical addresses."""

    def __init__(self) -> None:
        self._open: list[int] = []
        try:
            self.device = self._keep(open_device())
            try:
                self._create()
            except OSError as error:
                raise EngineMissing(f"KVM makes no virtual machine ({error.strerror}); {_INSTEAD}") from None
        except BaseException:
            self.close()
            raise
        self._slots = 0
        self._memories: list[Memory] = []
        """By address, ascending."""
        self._starts: list[int] = []
        self._pinned: list[object] = []
        self._devices: list[tuple[int, int, Read, Write]] = []
        self._ports: list[tuple[int, int]] = []
        self._spare = mmap.mmap(-1, mmap.PAGESIZE)
        self._spare_slot = self._slots
        self._slots += 1

    def _keep(self, descriptor: int) -> int:
        self._open.append(descriptor)
        return descriptor

    def _create(self) -> None:
        self.vm = self._keep(fcntl.ioctl(self.device, api.CREATE_VM, 0))
        if fcntl.ioctl(self.device, api.CHECK_EXTENSION, api.CAP_SET_TSS_ADDR):
            _ioctl(self.vm, api.SET_TSS_ADDR, _ROOM_FOR_TSS)
        fcntl.ioctl(self.vm, api.SET_NR_MMU_PAGES, _MMU_PAGES)
        self.cpu = self._keep(fcntl.ioctl(self.vm, api.CREATE_VCPU, 0))
        leaves = bytearray(8 + 40 * _LEAVES)
        struct.pack_into("<I", leaves, 0, _LEAVES)
        fcntl.ioctl(self.device, api.GET_SUPPORTED_CPUID, leaves)
        self._show_vendor(leaves)
        self.leaves = leaves
        fcntl.ioctl(self.cpu, api.SET_CPUID2, leaves)
        size = fcntl.ioctl(self.device, api.GET_VCPU_MMAP_SIZE, 0)
        self.run = mmap.mmap(self.cpu, size)
        ring = fcntl.ioctl(self.device, api.CHECK_EXTENSION, api.CAP_COALESCED_MMIO)
        ports = fcntl.ioctl(self.device, api.CHECK_EXTENSION, api.CAP_COALESCED_PIO)
        self.ring = ring * mmap.PAGESIZE if ring and ports else 0
        """Offset of the ring of coalesced port writes in `run`; 0 where there is none."""

    @staticmethod
    def _show_vendor(leaves: bytearray) -> None:
        """Name the vendor that guests are shown: where KVM interprets code, it does as that one's processors do. Theirs
        refuse SYSCALL outside 64-bit mode, where others go on at an address that a deprivileged guest has not set."""
        (count,) = struct.unpack_from("<I", leaves)
        for at in range(8, 8 + 40 * count, 40):
            if struct.unpack_from("<I", leaves, at)[0] == 0:
                struct.pack_into("<3I", leaves, at + 16, *identify(0, 0)[1:])

    def leaf(self, number: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX of a CPUID leaf that KVM supports, or zeros."""
        (count,) = struct.unpack_from("<I", self.leaves)
        for index in range(count):
            found, below, _flags, *values = struct.unpack_from("<7I", self.leaves, 8 + 40 * index)
            if (found, below) == (number, subleaf):
                return values[0], values[1], values[2], values[3]
        return 0, 0, 0, 0

    # -- memory ---------------------------------------------------------------------------------

    def add_memory(self, physical: int, memory: memoryview) -> None:
        """Back physical addresses. Raises `EngineMissing` where KVM refuses."""
        try:
            pinned = (ctypes.c_char * memory.nbytes).from_buffer(memory)
            address = ctypes.addressof(pinned)
            self._region(self._slots, physical, memory.nbytes, address)
        except (OSError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise EngineMissing(f"KVM cannot map {memory.nbytes} bytes of memory at {physical:#x} ({reason})") from None
        self._slots += 1
        self._pinned.append(pinned)
        words = memory.cast("B").cast("Q")
        self._memories.append((physical, physical + memory.nbytes, words, _is_shared(address), address))
        self._memories.sort(key=lambda one: one[0])
        self._starts = [one[0] for one in self._memories]

    def _region(self, slot: int, physical: int, size: int, address: int) -> None:
        fcntl.ioctl(self.vm, api.SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", slot, 0, physical, size, address))

    def forget_translations(self, physical: int) -> None:
        """Have KVM forget all it has cached of page tables: it does when memory goes away. `physical` is unused."""
        pinned = (ctypes.c_char * mmap.PAGESIZE).from_buffer(self._spare)
        for size in (mmap.PAGESIZE, 0):
            self._region(self._spare_slot, physical, size, ctypes.addressof(pinned))

    def take_page(self, physical: int) -> bool:
        """Take a page of shared memory away from this process, and so from KVM, until it is touched next. Its
        contents stay. Whether the host did it."""
        found = self.find(physical)
        return found is not None and not _madvise(found[4] + physical - found[0], mmap.PAGESIZE, _DONTNEED)

    def find(self, physical: int) -> Memory | None:
        """The memory around a physical address."""
        at = bisect_right(self._starts, physical) - 1
        if at >= 0 and physical < self._memories[at][1]:
            return self._memories[at]
        return None

    def word(self, physical: int) -> int | None:
        """The 64-bit word at an aligned physical address; None where there is no memory."""
        found = self.find(physical)
        return int(found[2][physical - found[0] >> 3]) if found else None

    # -- devices --------------------------------------------------------------------------------

    def add_device(self, physical: int, size: int, read: Read, write: Write) -> None:
        """Route accesses to physical addresses that no memory backs."""
        self._devices.append((physical, physical + size, read, write))

    def device_at(self, physical: int) -> tuple[int, int, Read, Write] | None:
        """First address, end and functions of the device at an address: the one added last."""
        for one in reversed(self._devices):
            if one[0] <= physical < one[1]:
                return one
        return None

    def coalesce(self, ports: list[tuple[int, int]]) -> None:
        """Collect writes to these ports (first, count), and to no others, in the ring."""
        for request, which in ((api.UNREGISTER_COALESCED, self._ports), (api.REGISTER_COALESCED, ports)):
            for first, count in which:
                fcntl.ioctl(self.vm, request, struct.pack("<QII", first, count, 1))
        self._ports = ports

    def set_msrs(self, values: dict[int, int]) -> bool:
        """Write model-specific registers; whether KVM took all of them."""
        data = struct.pack("<II", len(values), 0)
        data += b"".join(struct.pack("<IIQ", number, 0, value) for number, value in values.items())
        done = _ioctl(self.cpu, api.SET_MSRS, ctypes.create_string_buffer(data, len(data)))
        return int(done) == len(values)

    def close(self) -> None:
        """Release everything. Idempotent."""
        while self._open:
            os.close(self._open.pop())


def _is_shared(address: int) -> bool:
    """Whether the host's mapping around `address` is a shared one, so that its pages survive MADV_DONTNEED."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        for line in maps:
            bounds, rights = line.split(None, 2)[:2]
            low, high = (int(part, 16) for part in bounds.split("-"))
            if low <= address < high:
                return rights[3] == "s"
    return False


__all__ = ["PATH", "Memory", "Read", "Vm", "Write", "open_device"]
