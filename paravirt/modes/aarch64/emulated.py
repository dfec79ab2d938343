"""Accesses of an AArch64 guest that are done in its place: to devices, to pages of passage, to its own code, as user.

Room: `paravirt/modes/aarch64`. The part of the hypervisor that takes loads and stores apart.
"""

from __future__ import annotations

from typing import Final

from emulator.board.virt import UART
from emulator.devices import pl011
from emulator.engine.aarch64 import SP, AArch64Engine, AArch64Registers, Passage, PassingAccess, QuietAccess
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.access import Access, address_of, decode, loaded
from emulator.isa.aarch64.exceptions import AArch64Exception
from emulator.isa.aarch64.paging import FRAME_MASK
from emulator.isa.aarch64.table import TABLE
from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.operation import Operation
from emulator.isa.paging import KERNEL_SHIFT, WRITE
from paravirt import abi
from paravirt.hypervisor import Hypervisor
from paravirt.modes.aarch64 import debug
from paravirt.modes.aarch64.shadow import AArch64Shadow
from paravirt.modes.aarch64.vcpu import AArch64VirtualCpu

UNMAPPED: Final = abi.AARCH64_UNMAPPED // 8
"""Word of the shared page: the page that has nothing to invalidate."""
_MOST_EMULATED: Final = 32
"""Accesses by one and the same entry from which on a page of passage is mapped by one that must be emulated ..."""
_MOST_PASSED: Final = 4096
"""... and by one that passes by without an exit, which costs less than a hundredth of what mapping the page does."""
_QUIET: Final = 12
"""Quiet accesses known at a time."""
_PASSERS: Final = 12
"""Accesses known at a time that pass by."""
_TAG: Final = (1 << 44) - 1
"""Of the number of a page, what the word of the shared page has."""
_OFTEN: Final = 8
"""Invalidations of a page from which on its first access afterwards is done without mapping it."""


class EmulatedAccesses(Hypervisor):
    """Loads and stores in the guest's place; what it works on is made by `AArch64Hypervisor`."""

    engine: AArch64Engine
    vcpu: AArch64VirtualCpu
    shadow: AArch64Shadow
    _registers: AArch64Registers
    _debug: debug.DebugEvents
    _accesses: dict[int, Access | None]
    _access_at: dict[int, Access]
    _access_pages: set[int]
    _quiet: dict[tuple[int, int], QuietAccess]
    _serial_status: int
    _serial_posts: bool
    _guest_words: memoryview
    _memory_base: int
    _memory_end: int
    _passages: dict[int, tuple[int, int, int]]
    _passages_counted: list[int]
    _open_passage: Passage | None
    _passers: dict[int, PassingAccess]

    def _kernel_page_below(self, address: int, frame: int, write: bool) -> None:
        """A page of the kernel's in the lower half: never mapped for data, so that LDTR and STTR, which are plain
        accesses here, are told from others."""
        pc = self._registers.pc
        site = self._site_of(pc) if self._in_fixup(pc) else pc
        row = TABLE.row_of(int.from_bytes(self.vcpu.fetch(site).ljust(4, b"\0"), "little"))
        if row is not None and row.operation is Operation.ACCESS_AS_USER:
            try:
                self.vcpu.walker.walk(address, write, True, False)
            except ArchitecturalException as fault:
                self._refuse(fault, "page fault to the guest")
            return
        access = self._access(site)
        if access is None or access.load == write or (address & 0xFFF) + 2 * access.size > 4096:
            self._fill(address, write, False)
            return
        self.exits.count("access to a kernel page below", "emulated")
        if write:
            self._do_store(access, frame | address & 0xFFF)
        else:
            self._do_load(access, frame | address & 0xFFF)
        self.vcpu.advance()

    def _reused(self, address: int, frame: int, write: bool, entry: int) -> bool:
        """A page of the kernel's that is mapped for one access and invalidated again, many times over: its accesses
        are done here, and there is nothing to invalidate afterwards. Linux patches its text so, a word at a time.

        Whether it was invalidated in between is not seen then; a page that is used a little longer is mapped.
        """
        shadow = self.shadow
        page = address >> 12
        if shadow.clean_page != page or shadow.invalidations.get(page, 0) < _OFTEN:
            return False
        passed = self._pass(entry)
        access = self._access(self._registers.pc)
        if access is None or access.load == write or passed > (_MOST_PASSED if _passes(access) else _MOST_EMULATED):
            return False
        if (address & 0xFFF) + 2 * access.size > 4096:
            return False
        self._count(self._passages_counted)
        self._shared_unmapped(page)
        walk = self.vcpu.walker.result
        table = walk.tables[1] + (address >> 9 & 0xFF8)
        self._learn_passage(Passage(page, page & _TAG, table, entry, _MOST_PASSED), access, walk.rights)
        if write:
            self._passages[page] = self.vcpu.context.generation, table - self._memory_base >> 3, entry
            self._do_store(access, frame | address & 0xFFF)
            self._own_store = -1  # it is done
        else:
            self._do_load(access, frame | address & 0xFFF)
        self.vcpu.advance()
        return True

    def _pass_store(self, address: int) -> bool:
        """The same for a store like the last one to the page: its entry is looked at where it was found then, and must
        differ in the frame at most. Hot: Linux patches every function's begin so."""
        page = address >> 12
        known = self._passages.get(page)
        access = self._access_at.get(self._registers.pc)
        if known is None or access is None or access.load or access.second >= 0:
            return False
        generation, at, like = known
        entry = self._guest_words[at]
        if generation != self.vcpu.context.generation or (entry ^ like) & ~FRAME_MASK:
            return False
        passing, passed = self.engine.passing
        if entry == passing and passed >= (_MOST_PASSED if _passes(access) else _MOST_EMULATED):
            return False
        physical = entry & FRAME_MASK | address & 0xFFF
        size = access.size
        if not self._memory_base <= physical < self._memory_end or (address & 0xFFF) + 2 * size > 4096:
            return False
        if self.shadow.invalidations.get(page, 0) < _OFTEN:
            return False
        self._pass(entry)
        self._count(self._passages_counted)
        self.shared[UNMAPPED] = page & _TAG
        if self._open_passage is not None and self._registers.pc not in self._passers:
            self._learn_passer(access)
        vcpu = self.vcpu
        value = vcpu.gpr[access.first] if access.first != SP else 0
        if access.writeback:
            self._write_back(access)
        vcpu.write_memory(physical, size, value)
        self._own_store = -1
        vcpu.advance()
        return True

    def _shared_unmapped(self, page: int) -> None:
        """Tell fixups which page has nothing to invalidate."""
        self.shared[UNMAPPED] = page & _TAG

    def _pass(self, entry: int) -> int:
        """An access by an entry: how many there were by it before, in a row."""
        passing, passed = self.engine.passing
        passed = passed + 1 if entry == passing else 0
        self.engine.passing = entry, passed
        return passed

    def _learn_passage(self, passage: Passage, access: Access, rights: int) -> None:
        """An access to a page of passage was done: the next one of this kind needs no exit, while the page's entry is
        like it was, but for the frame."""
        if self.shadow.frames.guard is not None or self.shadow.watched or not rights >> KERNEL_SHIFT & WRITE:
            return
        known = self._open_passage
        if known is None or known[:3] != passage[:3] or (known.like ^ passage.like) & ~FRAME_MASK:
            self._open_passage = passage
            self.engine.let_pass(passage, tuple(self._passers.values()))
        if self._registers.pc not in self._passers:
            self._learn_passer(access)

    def _learn_passer(self, access: Access) -> None:
        if not _passes(access):
            return
        pc = self._registers.pc
        if len(self._passers) == _PASSERS:
            self._passers.clear()
        self._passers[pc] = PassingAccess(pc, access.first, access.size, not access.load)
        self.engine.let_pass(self._open_passage, tuple(self._passers.values()))

    def _close_passage(self) -> None:
        """Where the entry of the page of passage is may have changed."""
        if self._open_passage is not None:
            self._open_passage = None
            self.engine.let_pass(None)

    def _reads_itself(self, address: int, frame: int) -> bool:
        """Code reads the page it executes from, which can be executed only: the load is done in its place."""
        page = frame - self.machine.memory.base >> 12
        pc = self._registers.pc
        if self._in_fixup(pc) or not self.code.executes_from(pc & ~0xFFF, page):
            return False
        access = self._access(pc)
        if access is None or not access.load:
            return False
        self.exits.count("read of the executing page", "emulated")
        self._do_load(access, frame | address & 0xFFF)
        self.vcpu.advance()
        return True

    def _access(self, pc: int) -> Access | None:
        """The load or store at `pc`, taken apart; None where it is none that can be done in the guest's place."""
        known = self._access_at.get(pc)
        if known is not None:
            return known
        code = self.vcpu.fetch(pc)
        if not code:
            return None
        word = int.from_bytes(code, "little")
        if word not in self._accesses:
            self._accesses[word] = decode(word)
        access = self._accesses[word]
        if access is not None and self.vcpu.level:
            self._access_at[pc] = access
            self._access_pages.add(pc >> 12)
        return access

    def _learn_quiet(self, physical: int, address: int, pc: int, access: Access) -> None:
        """An access to the serial port was done: whether the next one of this kind needs no exit."""
        if access.second >= 0 or access.writeback or access.signed or access.first == SP or len(self._quiet) >= _QUIET:
            return
        offset = physical - UART
        if access.load and offset == pl011.FR and self._serial_status >= 0:
            row = QuietAccess(pc, address, access.first, self._serial_status & (1 << 8 * access.size) - 1)
        elif not access.load and offset == pl011.DR and self._serial_posts:
            row = QuietAccess(pc, address, access.first, tag=offset)
        else:
            return
        self._quiet[pc, address] = row
        self.engine.be_quiet(tuple(self._quiet.values()))

    def _do_load(self, access: Access, physical: int) -> None:
        """Load from memory or a device that begins at `physical`, writing back the base."""
        registers = (access.first,) if access.second < 0 else (access.first, access.second)
        gpr = self.vcpu.gpr
        values = [self._read(physical + number * access.size, access.size) for number in range(len(registers))]
        self._write_back(access)
        for register, value in zip(registers, values, strict=True):
            if register != SP:
                gpr[register] = loaded(access, value)

    def _do_store(self, access: Access, physical: int) -> None:
        registers = (access.first,) if access.second < 0 else (access.first, access.second)
        gpr = self.vcpu.gpr
        values = [gpr[register] if register != SP else 0 for register in registers]
        self._write_back(access)
        for number, value in enumerate(values):
            self._write(physical + number * access.size, access.size, value & (1 << 8 * access.size) - 1)

    def _write_back(self, access: Access) -> None:
        if access.writeback and access.base >= 0:
            gpr = self.vcpu.gpr
            gpr[access.base] = gpr[access.base] + access.writeback & 0xFFFF_FFFF_FFFF_FFFF

    def _read(self, physical: int, size: int) -> int:
        vcpu = self.vcpu
        if vcpu.is_memory(physical):
            return vcpu.read_memory(physical, size)
        return self.board.mmio.read(physical, size)

    def _write(self, physical: int, size: int, value: int) -> None:
        if self.vcpu.is_memory(physical):
            self.vcpu.write_memory(physical, size, value)
        else:
            self.board.mmio.write(physical, size, value)

    def _device(self, physical: int, address: int, write: bool) -> None:
        """An access to a device, by the kernel where it may be quiet the next time."""
        pc = self._registers.pc
        access = self._access(self._site_of(pc) if self._in_fixup(pc) else pc)
        if access is None or access.load == write:
            self._refuse(AArch64Exception(x.DATA_SAME, x.EXTERNAL_ABORT | (x.WNR if write else 0), 0))
            return
        self.exits.count("device write" if write else "device read", "emulated")
        self.vcpu.advance()
        if write:
            self._do_store(access, physical)
            self._device_written()
        else:
            self._do_load(access, physical)
        if UART <= physical < UART + 4096 and self.vcpu.level and address >> 63:
            self._learn_quiet(physical, address, pc, access)

    def access_as_user(self, word: int) -> None:
        """LDTR and STTR: with the rights of EL0."""
        access = decode(word)
        assert access is not None
        vcpu = self.vcpu
        address = address_of(access, vcpu.gpr, vcpu.pc)
        physical = vcpu.translate(address, not access.load, True)
        if (address & 0xFFF) + access.size > 4096:
            self._access_across(access, address, physical)
        elif access.load:
            self._do_load(access, physical)
        else:
            self._do_store(access, physical)
        vcpu.advance()

    def _access_across(self, access: Access, address: int, physical: int) -> None:
        """An access that two pages have a part of: both must be there before either is touched."""
        vcpu = self.vcpu
        head = 4096 - (address & 0xFFF)
        tail = vcpu.translate(address + head & 0xFFFF_FFFF_FFFF_FFFF, not access.load, True)
        if access.load:
            value = self._read(physical, head) | self._read(tail, access.size - head) << 8 * head
            if access.first != SP:
                vcpu.gpr[access.first] = loaded(access, value)
        else:
            value = vcpu.gpr[access.first] if access.first != SP else 0
            self._write(physical, head, value & (1 << 8 * head) - 1)
            self._write(tail, access.size - head, value >> 8 * head & (1 << 8 * (access.size - head)) - 1)

    def _watched(self, address: int, write: bool) -> bool:
        """An access to a page with a watchpoint: False where something else comes first, an abort or a device.

        Where none fires, the page is mapped for this instruction.
        """
        pc = self._registers.pc
        try:
            walk = self.vcpu.walker.walk(address, write, self.vcpu.level == 0, False)
        except ArchitecturalException:
            return False
        if walk.level > 1 or not self.vcpu.is_memory(walk.frame):
            return False
        access = self._access(self._site_of(pc) if self._in_fixup(pc) else pc)
        size = 8 if access is None else access.size << (access.second >= 0)
        if self._debug.touches(address, size, write):
            self._refuse(AArch64Exception(x.WATCHPOINT_SAME, debug.ISS | (x.WNR if write else 0), address))
            return True
        self.exits.count("access to a watched page", "fill")
        self.shadow.fill_walked(walk, write)
        self._debug.passing = address >> 12
        self._registers.stepping = True
        return True


def _passes(access: Access) -> bool:
    """Whether an engine may do an access without an exit."""
    return access.second < 0 and not access.writeback and not access.signed and access.first != SP
