"""The 64-bit and the 32-bit Linux boot protocol: a kernel, its initramfs and command line into a PC's memory.

Room: `emulator/board`. Does what a boot loader does (Documentation/arch/x86/boot.rst, "64-bit BOOT
PROTOCOL"): zero page, e820 map, identity-mapped page tables, flat GDT; for a 32-bit kernel paging stays off.
The guests of `samples/` are started in the same way. It reads plain bytes and writes memory; it knows no file
format and no CPU.
"""

import struct
from dataclasses import dataclass

from emulator.board.boot import BootError, BootImage, LoadSegment
from emulator.memory import PAGE_SIZE, GuestMemory

MP_POINTER, MP_TABLE = 0x0, 0x10
"""The page at 0: a BIOS data area, and with `mp_table` the MP floating pointer and its table."""
GDT = 0x1000
ZERO_PAGE = 0x2000
SETUP_DATA = 0x3000
COMMAND_LINE, COMMAND_LINE_SIZE = 0x4000, 0x1000
STACK_TOP = 0x7000
PAGE_TABLES, PAGE_TABLE_PAGES = 0x8000, 6
BOOT_DATA_END = 0x1_0000
"""What the loader uses lies below; a kernel's segments must lie above."""

LOW_MEMORY_END = 0x9_FC00
"""End of the usable low 640 KiB: the last kilobyte is the BIOS's."""
HOLE_END = 0x10_0000
MEMORY_LIMIT = 0xC000_0000
"""Where a PC's device addresses begin: most memory that this board can have."""

CODE_SELECTOR, DATA_SELECTOR = 0x10, 0x18
"""__BOOT_CS and __BOOT_DS."""

_E820_RAM, _E820_RESERVED = 1, 2
_SETUP_HEADER, _SETUP_MAGIC = 0x1F1, 0x202
_INITRD_LIMIT = 0x7FFF_FFFF
_SETUP_RNG_SEED = 9
_RELOCATABLE_LOAD = 0x01
_PROTECTED = 0x11
"""CR0: ET and PE."""


@dataclass(frozen=True, slots=True)
class EntryState:
    """The CPU's registers at the kernel's entry point, by default the 64-bit one; general registers not named are 0."""

    rip: int
    rsi: int
    """Guest-physical address of the zero page."""
    rsp: int
    cr3: int
    gdt_base: int
    gdt_limit: int
    cs: int = CODE_SELECTOR
    ds: int = DATA_SELECTOR
    """DS, ES and SS."""
    cr0: int = 0x8000_0011
    """PG, ET, PE."""
    cr4: int = 0x20
    """PAE."""
    efer: int = 0x500
    """LMA, LME."""
    rflags: int = 0x2
    """Interrupts are off."""


def place(
    memory: GuestMemory, image: BootImage, *, mp_table: bool = False, seed: bytes = b"", bits: int = 64
) -> EntryState:
    """Put `image` into memory that is still zero, and say how to enter it, in 64-bit or in 32-bit mode.

    `mp_table` adds the header that ends a kernel's search for an MP table at once (see `_place_mp_table`). `seed` is
    handed to the kernel's random number generator (Linux 6.0 and later). Raises BootError when something does not fit.
    """
    _check_memory(memory)
    for segment in image.segments:
        _check_segment(memory, segment)
    _check_entry(image)
    initrd = _initrd_address(memory, image)
    loaders = (
        (COMMAND_LINE, _command_line(image)),
        (ZERO_PAGE, _zero_page(memory, image, initrd, mp_table, seed)),
        (SETUP_DATA, _setup_data(seed)),
        (initrd, image.initrd),
    )
    for segment in image.segments:
        filled = memoryview(segment.data).nbytes
        memory.write_bytes(segment.physical, segment.data)
        memory.clear(segment.physical + filled, segment.memory_size - filled)
    for address, data in loaders:
        memory.write_bytes(address, data)
    if mp_table:
        _place_mp_table(memory)
    gdt = _place_gdt(memory, bits)
    if bits == 32:
        return EntryState(
            rip=image.entry,
            rsi=ZERO_PAGE,
            rsp=STACK_TOP,
            cr3=0,
            gdt_base=GDT,
            gdt_limit=gdt - 1,
            cr0=_PROTECTED,
            cr4=0,
            efer=0,
        )
    return EntryState(
        rip=image.entry,
        rsi=ZERO_PAGE,
        rsp=STACK_TOP,
        cr3=_place_page_tables(memory),
        gdt_base=GDT,
        gdt_limit=gdt - 1,
    )


def _check_memory(memory: GuestMemory) -> None:
    if memory.size > MEMORY_LIMIT:
        raise BootError(
            f"{memory.size >> 20} MiB of memory reach into a PC's device addresses from {MEMORY_LIMIT:#x} on:"
            f" give at most {MEMORY_LIMIT >> 20} MiB"
        )
    if memory.size < 2 * HOLE_END:
        raise BootError(f"{memory.size >> 10} KiB of memory are too few to boot in: give at least 2 MiB")


def _check_segment(memory: GuestMemory, segment: LoadSegment) -> None:
    physical, size, filled = segment.physical, segment.memory_size, memoryview(segment.data).nbytes
    end = physical + size
    where = f"kernel segment {physical:#x}-{end:#x}"
    if filled > size:
        raise BootError(f"{where} has {filled} bytes of contents for {size} of memory: the image is damaged")
    if physical < 0 or end > memory.size:
        raise BootError(f"{where} is outside memory, which ends at {memory.size:#x}: give the guest more memory")
    if size and physical < BOOT_DATA_END:
        raise BootError(f"{where} covers the loader's data below {BOOT_DATA_END:#x}: link the kernel higher")
    if size and physical < HOLE_END and end > LOW_MEMORY_END:
        raise BootError(
            f"{where} covers the hole {LOW_MEMORY_END:#x}-{HOLE_END:#x} in a PC's memory: link the kernel elsewhere"
        )


def _check_entry(image: BootImage) -> None:
    ends = 0
    for segment in sorted(image.segments, key=lambda segment: segment.physical):
        if segment.memory_size and segment.physical < ends:
            raise BootError(f"kernel segment at {segment.physical:#x} overlaps the one before: the image is damaged")
        ends = max(ends, segment.physical + segment.memory_size)
    if not any(0 <= image.entry - segment.physical < memoryview(segment.data).nbytes for segment in image.segments):
        raise BootError(
            f"entry point {image.entry:#x} is in no kernel segment: the image is damaged or not for this PC"
        )


def _command_line(image: BootImage) -> bytes:
    """The command line with its final zero."""
    try:
        text = image.command_line.encode()
    except UnicodeEncodeError:
        raise BootError("the kernel command line is no valid text: give it in UTF-8") from None
    limit = COMMAND_LINE_SIZE - 1
    header = image.setup_header
    if len(header) >= 0x23C - _SETUP_HEADER:
        limit = min(limit, struct.unpack_from("<I", header, 0x238 - _SETUP_HEADER)[0] or 255)
    if len(text) > limit:
        raise BootError(f"the kernel command line has {len(text)} bytes, the kernel takes {limit}: shorten it")
    if b"\0" in text:
        raise BootError("the kernel command line contains a zero byte: remove it")
    return text + b"\0"


def _initrd_address(memory: GuestMemory, image: BootImage) -> int:
    """As high as the kernel's limit and memory allow, page-aligned, not over the kernel."""
    top = min(memory.size, _INITRD_LIMIT + 1)
    address = (top - len(image.initrd)) // PAGE_SIZE * PAGE_SIZE
    kernel_end = max((s.physical + s.memory_size for s in image.segments if s.memory_size), default=0)
    lowest = max(kernel_end, HOLE_END)
    if image.initrd and address < lowest:
        raise BootError(
            f"initramfs of {len(image.initrd)} bytes does not fit between the kernel's end at {lowest:#x}"
            f" and {top:#x}: give the guest more memory or a smaller initramfs"
        )
    return address if image.initrd else 0


def _zero_page(memory: GuestMemory, image: BootImage, initrd: int, mp_table: bool, seed: bytes) -> bytes:
    """struct boot_params (arch/x86/include/uapi/asm/bootparam.h)."""
    page = bytearray(PAGE_SIZE)
    header = _setup_header(image.setup_header)
    page[_SETUP_HEADER : _SETUP_HEADER + len(header)] = header
    page[0x210] = 0xFF  # type_of_loader: not one with a number
    page[0x211] |= _RELOCATABLE_LOAD  # loadflags: loaded high
    struct.pack_into("<II", page, 0x218, initrd, len(image.initrd))
    struct.pack_into("<I", page, 0x228, COMMAND_LINE)
    struct.pack_into("<Q", page, 0x250, SETUP_DATA if seed else 0)
    entries = _e820(memory, mp_table)
    page[0x1E8] = len(entries)
    for number, entry in enumerate(entries):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * number, *entry)
    kib_above_1m = (memory.size >> 10) - 1024
    struct.pack_into("<H", page, 0x02, min(kib_above_1m, 0xFC00))  # ext_mem_k
    struct.pack_into("<I", page, 0x1E0, kib_above_1m)  # alt_mem_k
    return bytes(page)


def _setup_header(header: bytes) -> bytes:
    """The image's own setup header, or one for protocol 2.15 where it has none."""
    if not header:
        made = bytearray(0x26C - _SETUP_HEADER)
        struct.pack_into("<H", made, 0x1FE - _SETUP_HEADER, 0xAA55)
        struct.pack_into("<4sH", made, _SETUP_MAGIC - _SETUP_HEADER, b"HdrS", 0x20F)
        made[0x201 - _SETUP_HEADER] = 0x26C - 0x202
        struct.pack_into("<I", made, 0x22C - _SETUP_HEADER, _INITRD_LIMIT)
        struct.pack_into("<I", made, 0x238 - _SETUP_HEADER, COMMAND_LINE_SIZE - 1)
        return bytes(made)
    if len(header) < 0x26C - _SETUP_HEADER or header[_SETUP_MAGIC - _SETUP_HEADER :][:4] != b"HdrS":
        raise BootError(
            "the image's setup header lacks its HdrS mark or is too short: it is no bzImage of Linux 2.6.20+"
        )
    version = struct.unpack_from("<H", header, 0x206 - _SETUP_HEADER)[0]
    if version < 0x20C:
        raise BootError(
            f"the image speaks boot protocol {version >> 8}.{version & 0xFF:02d}, 64-bit entry needs 2.12:"
            " take a kernel of Linux 3.8 or later"
        )
    return header[: min(0x202 + header[0x201 - _SETUP_HEADER], 0x290) - _SETUP_HEADER]


def _e820(memory: GuestMemory, mp_table: bool) -> list[tuple[int, int, int]]:
    """The memory map: (address, size, type), ascending."""
    low = PAGE_SIZE if mp_table else 0
    entries = [(0, low, _E820_RESERVED)] if mp_table else []
    return [
        *entries,
        (low, LOW_MEMORY_END - low, _E820_RAM),
        (LOW_MEMORY_END, 0xA_0000 - LOW_MEMORY_END, _E820_RESERVED),
        (0xF_0000, HOLE_END - 0xF_0000, _E820_RESERVED),
        (HOLE_END, memory.size - HOLE_END, _E820_RAM),
    ]


def _setup_data(seed: bytes) -> bytes:
    """struct setup_data with a seed for the random number generator (arch/x86/kernel/setup.c); nothing for none."""
    if not seed:
        return b""
    room = COMMAND_LINE - SETUP_DATA - 16
    if len(seed) > room:
        raise BootError(f"a random seed of {len(seed)} bytes is too long: give at most {room}")
    return struct.pack("<QII", 0, _SETUP_RNG_SEED, len(seed)) + seed


def _place_mp_table(memory: GuestMemory) -> None:
    """An MP floating pointer where Linux looks first, to a table whose signature is wrong.

    Without one, default_find_smp_config (arch/x86/kernel/mpparse.c) maps and unmaps low memory once for each of the
    4224 paragraphs it looks at, one page table entry and one INVLPG for each page. smp_scan_config accepts a pointer
    with mark, length, revision and checksum right, and reserves the table, for which the length must not be 0;
    check_physptr then finds the signature wrong, clears smp_found_config and complains on the console. From there on
    everything is as if no pointer had been found: a uniprocessor without an IO-APIC.
    """
    pointer = bytearray(struct.pack("<4sIBBB5s", b"_MP_", MP_TABLE, 1, 4, 0, bytes(5)))
    pointer[10] = -sum(pointer) & 0xFF
    memory.write_bytes(MP_POINTER, pointer)
    memory.write_bytes(MP_TABLE, struct.pack("<4sHBB", b"none", 44, 4, 0))


def _place_gdt(memory: GuestMemory, bits: int) -> int:
    """Null, null, flat code of the mode, flat data; returns the table's size in bytes."""
    code = 0x00AF_9B00_0000_FFFF if bits == 64 else 0x00CF_9B00_0000_FFFF
    table = struct.pack("<QQQQ", 0, 0, code, 0x00CF_9300_0000_FFFF)
    memory.write_bytes(GDT, table)
    return len(table)


def _place_page_tables(memory: GuestMemory) -> int:
    """Identity-map the first 4 GiB in pages of 2 MiB; returns the address of the top table."""
    present_writable, large = 0x3, 0x80
    top, pointers, first = PAGE_TABLES, PAGE_TABLES + PAGE_SIZE, PAGE_TABLES + 2 * PAGE_SIZE
    memory.write(top, 8, pointers | present_writable)
    for gigabyte in range(4):
        memory.write(pointers + 8 * gigabyte, 8, first + gigabyte * PAGE_SIZE | present_writable)
    leaves = (number << 21 | present_writable | large for number in range(4 * 512))
    memory.write_bytes(first, struct.pack("<2048Q", *leaves))
    return top
