"""The guest's own tables of the instruction sets whose walks mark nothing: AArch64, ARMv7, and MIPS's TLB.

Room: `bt/gdb/targets`. A walk here changes nothing, not even what the hypervisor remembers of the guest's tables, and
knows no rights: a debugger reads what is mapped (DDI 0487, D8; DDI 0406, B3.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bt.gdb.targets import Mapped, Step, Walk, by_frame, table_memory
from emulator.errors import UsageError
from emulator.isa.aarch64 import paging as a64
from emulator.isa.arm import paging as a32
from emulator.isa.paging import KERNEL_SHIFT, USER_SHIFT

_PAIR = 0x1FFF
"""Bits of an address within a pair of small pages of MIPS's TLB."""


def _letters(kernel: int, user: int) -> str:
    """Rights as `Mapped` has them, of bits for reading, writing and executing."""
    shown = "".join(letter for bit, letter in ((1, "r"), (2, "w"), (4, "x")) if (kernel | user) & bit)
    return shown + ("u" if user else "")


def _region_64(context: Any, upper: int) -> tuple[int, int, int] | None:
    """Table, level and address bits of one half of the addresses; None where it is not translated."""
    region = context.tcr >> 16 if upper else context.tcr
    size = 64 - (region & 63)
    if region & a64.TCR_EPD0 or not 25 <= size <= 48:
        return None
    table = (context.ttbr1 if upper else context.ttbr0) & 0xFFFF_FFFF_FFFE
    return int(table), (size - 13) // 9 + 1, size


def walk_64(driver: Any, address: int) -> Walk:
    """Translate by an AArch64 guest's tables."""
    context = getattr(getattr(driver, "vcpu", None), "context", None)
    if context is None:
        return by_frame(driver, address)
    if not context.sctlr & a64.SCTLR_M:
        return Walk(address)
    upper = address >> 55 & 1
    region = _region_64(context, upper)
    if region is None:
        return Walk(None)
    table, level, size = region
    if address >> size & (1 << 56 - size) - 1 != ((1 << 56 - size) - 1 if upper else 0):
        return Walk(None)
    memory, steps, bits = table_memory(driver), list[Step](), size - (level * 9 + 3)
    while True:
        shift = level * 9 + 3
        at = table + (address >> shift & (1 << bits) - 1) * 8
        if not memory.base <= at <= memory.end - 8:
            break
        entry = memory.read(at, 8)
        steps.append(Step(level, at, entry))
        if not entry & a64.VALID or (not entry & a64.TABLE and level in (1, 4)):
            break
        if level == 1 or not entry & a64.TABLE:
            mask = (1 << shift) - 1
            return Walk(entry & a64.FRAME_MASK & ~mask | address & mask, tuple(steps))
        table, level, bits = entry & a64.FRAME_MASK, level - 1, 9
    return Walk(None, tuple(steps))


def _virtual(driver: Any) -> Any:
    """The guest's virtual processor. Raises `UsageError` where it has none, and its registers are not to be had."""
    cpu = getattr(driver, "vcpu", None)
    if cpu is None:
        raise UsageError("the tables of a guest at full privilege are not known; run it without --virt native")
    return cpu


def mappings_64(driver: Any) -> Iterator[Mapped]:
    """All that an AArch64 guest's tables map."""
    context = _virtual(driver).context
    if not context.sctlr & a64.SCTLR_M:
        return
    for upper in (0, 1):
        region = _region_64(context, upper)
        if region is not None:
            table, level, size = region
            start = (1 << 64) - (1 << size) if upper else 0
            yield from _mapped_64(table_memory(driver), context, table, level, size - (level * 9 + 3), start, 0)


def _mapped_64(
    memory: Any, context: Any, table: int, level: int, bits: int, start: int, limits: int
) -> Iterator[Mapped]:
    shift = level * 9 + 3
    for index in range(1 << bits):
        at = table + index * 8
        if not memory.base <= at <= memory.end - 8:
            return
        entry = memory.read(at, 8)
        if not entry & a64.VALID:
            continue
        address = start + (index << shift)
        if level == 1 or not entry & a64.TABLE:
            rights = a64.rights_of(entry, limits, bool(context.sctlr & a64.SCTLR_WXN))
            letters = _letters(rights >> KERNEL_SHIFT & 7, rights >> USER_SHIFT & 7)
            yield Mapped(address, entry & a64.FRAME_MASK & ~((1 << shift) - 1), 1 << shift, letters)
        else:
            yield from _mapped_64(memory, context, entry & a64.FRAME_MASK, level - 1, 9, address, limits | entry)


def walk_32(driver: Any, address: int) -> Walk:
    """Translate by an ARMv7 guest's tables."""
    context = getattr(getattr(driver, "vcpu", None), "context", None)
    if context is None:
        return by_frame(driver, address)
    if not context.sctlr & a32.SCTLR_M:
        return Walk(address)
    if address >> 32:
        return Walk(None)
    memory, at = driver.machine.memory, int(context.first_level(address))
    if not memory.base <= at <= memory.end - 4:
        return Walk(None)
    first = memory.read(at, 4)
    steps = [Step(2, at, first)]
    if first & 3 == 1:
        at = first & 0xFFFF_FC00 | address >> 10 & 0x3FC
        if memory.base <= at <= memory.end - 4:
            second = memory.read(at, 4)
            steps.append(Step(1, at, second))
            size = _size_32(second)
            if size:
                return Walk(second & ~(size - 1) | address & size - 1, tuple(steps))
        return Walk(None, tuple(steps))
    size = 0 if not first & 3 else 1 << 24 if first & 1 << 18 else 1 << 20
    return Walk(first & ~(size - 1) & 0xFFFF_FFFF | address & size - 1 if size else None, tuple(steps))


def _size_32(second: int) -> int:
    """Bytes of the page that a second-level descriptor maps; 0 where it maps none."""
    return 4096 if second & 2 else 65536 if second & 1 else 0


def mappings_32(driver: Any) -> Iterator[Mapped]:
    """All that an ARMv7 guest's tables map, in pieces of at most a section."""
    context = _virtual(driver).context
    if not context.sctlr & a32.SCTLR_M:
        return
    memory, simple = driver.machine.memory, bool(context.sctlr & a32.SCTLR_AFE)
    for address in range(0, 1 << 32, 1 << 20):
        walk = walk_32(driver, address)
        if not walk.steps:
            continue
        first = walk.steps[0].value
        if first & 3 == 1:
            table = first & 0xFFFF_FC00
            for page in range(256):
                at = table + 4 * page
                second = memory.read(at, 4) if memory.base <= at <= memory.end - 4 else 0
                size = _size_32(second)
                if size:
                    place = second & ~(size - 1) | page << 12 & size - 1
                    yield Mapped(address + (page << 12), place, 4096, _letters(*a32.small_rights(second, simple)))
        elif walk.physical is not None:
            yield Mapped(address, walk.physical, 1 << 20, _letters(*a32.section_rights(first, simple)))


def mappings_tlb(driver: Any) -> Iterator[Mapped]:
    """What a MIPS guest's TLB maps in the present address space, and the memory in its unmapped segment."""
    cpu = _virtual(driver)
    found: list[Mapped] = []
    for entry in cpu.tlb.entries:
        if entry is None or not (entry.is_global or entry.asid == cpu.entry_hi & 0xFF):
            continue
        half = (entry.mask | _PAIR) + 1 >> 1
        for number, low in enumerate((entry.low, entry.high)):
            if low & 2:  # V
                address = (entry.vpn2 & ~(2 * half - 1)) + number * half
                place = (low >> 6 << 12) & ~(half - 1) & 0xFFFF_FFFF
                found.append(Mapped(address, place, half, "rwx" if low & 4 else "rx"))
    memory = driver.machine.memory
    found.append(Mapped(0x8000_0000, 0, min(memory.end, 1 << 29), "rwx"))
    yield from sorted(found)
