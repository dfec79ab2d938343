"""The virtual MIPS32 CPU: coprocessor 0 as the guest believes it to be, over the real registers of the engine.

Room: `paravirt/modes/mips`. General registers, HI, LO, PC and floating point are the engine's own; coprocessor 0, the
TLB and the privilege level live here. The interrupt enable is a word of the page shared with the guest's kernel.
Fulfils `paravirt.vcpu.VirtualCpu` and `emulator.isa.mips.exceptions.Processor`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emulator.board.malta import LINE_TIMER, Malta
from emulator.engine.mips import MipsEngine, MipsRegisters
from emulator.isa.mips import identity as i
from emulator.isa.mips import registers as r
from emulator.isa.mips.exceptions import MipsException, is_kernel
from emulator.isa.mips.place import Place
from emulator.isa.mips.tlb import Tlb, entry_of
from emulator.memory import GuestMemory
from paravirt import abi

KERNEL_LEVEL, USER_LEVEL = 0, 2
_MASK = 0xFFFF_FFFF
_EPC, _BAD_V_ADDR, _CONTEXT, _CAUSE, _ENTRY_HI, _INDEX, _PAGE_MASK = (
    abi.MIPS_READABLE[name] // 4 for name in ("EPC", "BadVAddr", "Context", "Cause", "EntryHi", "Index", "PageMask")
)
_ENTRY_LO0, _ENTRY_LO1 = (abi.MIPS_WRITABLE[name] // 4 for name in ("EntryLo0", "EntryLo1"))
_STATUS = abi.MIPS_STATUS // 4
_HELD = abi.MIPS_STATUS_HELD // 4
_SEEN = ~(abi.MIPS_STATUS_BITS | r.STATUS_IE) & _MASK
_FOLLOWS = abi.MIPS_STATUS_BITS & ~r.STATUS_CU1
_OPEN = r.STATUS_EXL | r.STATUS_ERL


class MipsVirtualCpu(Place):
    """Coprocessor 0 of one guest."""

    PLAIN = frozenset({"DEPC", "TagLo", "DataLo", "TagHi", "DataHi", "DESAVE"})
    """Registers that keep what is written and do nothing else."""

    registers: MipsRegisters

    def __init__(
        self, engine: MipsEngine, memory: GuestMemory, board: Malta, shared: memoryview, page: memoryview
    ) -> None:
        """`shared`: the words of the shared page; word 0 is not 0 while interrupts are enabled. `page`: those of the
        page of registers (`abi.MIPS_REGISTERS`)."""
        self.registers = engine.registers
        self.gpr = engine.registers.gpr
        self.board = board
        self._memory = memory.view
        self._size = memory.size
        self._shared = shared
        self._page = page
        self._order = "big" if engine.byte_order == "big" else "little"
        self.tlb = Tlb(i.TLB_SIZE)
        self.level = KERNEL_LEVEL
        self._fixed_status = r.STATUS_BEV | r.STATUS_ERL
        """Status, but for the bits that a word of the shared page holds. In it CU1 says whether the real coprocessor is
        usable: while it is not, the guest may change its own without an exit, and the real one follows when the
        coprocessor is used, or at the next change that is made here: an exception or a return from one is."""
        self._shared[_STATUS] = self._fixed_status
        self._shared[_HELD] = _SEEN
        self._cause = 0
        self.error_epc = self._bad_v_addr = self._context = self._entry_hi = 0
        self.int_ctl = i.INT_CTL
        self._index = self._page_mask = self.wired = self.hwrena = 0
        self.ebase = i.EBASE
        self.config = i.CONFIG | (i.BIG_ENDIAN if engine.byte_order == "big" else 0)
        self._plain = dict.fromkeys(sorted(self.PLAIN), 0)
        self._replaced = 0
        """Entries that TLBWR has replaced so far."""
        self.moved: tuple[tuple[int, int, int], ...] = ()
        """Mapped space that the hypervisor fills for a kernel that was moved there: first address, the one behind the
        last, and what is added for the physical address."""
        self.before_write: Callable[[int], None] = lambda _frame: None
        self.on_space_changed: Callable[[], None] = lambda: None
        """Called when other translations hold from now on: another ASID, or the error level."""
        self.on_timer_changed: Callable[[], None] = lambda: None
        """Called when Count or Compare was written: the next match is another."""
        self.on_translation_replaced: Callable[[int, int], None] = lambda _start, _size: None
        """Called with the virtual addresses that an entry of the TLB stood for, when another takes its place."""

    # -- place and level ------------------------------------------------------------------------

    @property
    def pc(self) -> int:
        """The instruction that the guest is at."""
        return self.registers.pc

    @pc.setter
    def pc(self, value: int) -> None:
        self.registers.jump(value)

    @property
    def interrupts_enabled(self) -> bool:
        """Whether a requested interrupt is taken now."""
        return bool(self._shared[0]) and not self._status & _OPEN and self.interrupt_requested

    @property
    def interrupt_requested(self) -> bool:
        """Whether an interrupt waits for nothing but IE and EXL, which the guest's kernel changes without an exit."""
        status = self._fixed_status
        return not status & r.STATUS_ERL and bool(status & (self._cause | self.board.lines << 8) & r.STATUS_IM)

    # -- registers with a meaning ---------------------------------------------------------------

    @property
    def _status(self) -> int:
        """Status without IE; the guest may have stored anything to the word, of which some bits count."""
        bits = abi.MIPS_STATUS_BITS
        return self._fixed_status & ~bits | self._shared[_STATUS] & bits

    @property
    def status(self) -> int:
        """Status; its IE is the shared word."""
        return self._status | (1 if self._shared[0] else 0)

    @status.setter
    def status(self, value: int) -> None:
        old = self._status
        self._shared[0] = value & r.STATUS_IE
        self._shared[_STATUS] = value = value & i.STATUS_WRITABLE & ~r.STATUS_IE
        fixed = value & ~_FOLLOWS
        if (self._fixed_status ^ fixed) & (r.STATUS_CU1 | r.STATUS_FR):
            self.registers.set_coprocessor(bool(value & r.STATUS_CU1), bool(value & r.STATUS_FR))
            self._shared[_HELD] = _SEEN | value & r.STATUS_CU1
        self._fixed_status = fixed
        self.level = KERNEL_LEVEL if is_kernel(value) else USER_LEVEL
        if (old ^ value) & r.STATUS_ERL:
            self.on_space_changed()

    def follow_coprocessor(self) -> bool:
        """Whether coprocessor 1 was usable in the guest's Status alone: now it is."""
        if self._fixed_status & r.STATUS_CU1 or not self._status & r.STATUS_CU1:
            return False
        self.status = self.status
        return True

    @property
    def cause(self) -> int:
        """Cause, the board's lines in it."""
        lines = self.board.lines
        return self._cause | lines << 8 | (r.CAUSE_TI if lines & LINE_TIMER else 0)

    @cause.setter
    def cause(self, value: int) -> None:
        """All but the lines."""
        self._cause = value & ~(r.CAUSE_TI | 0xFC00)
        self._page[_CAUSE] = self.cause

    def lines_changed(self) -> None:
        """The board drives other lines: the copy of Cause shows them."""
        self._page[_CAUSE] = self.cause

    @property
    def epc(self) -> int:
        """EPC, a word of the shared page."""
        return self._page[_EPC]

    @epc.setter
    def epc(self, value: int) -> None:
        self._page[_EPC] = value

    @property
    def entry_lo0(self) -> int:
        """EntryLo0, a word of the shared page that the guest may have stored anything to."""
        return self._page[_ENTRY_LO0] & i.ENTRY_LO_WRITABLE

    @entry_lo0.setter
    def entry_lo0(self, value: int) -> None:
        self._page[_ENTRY_LO0] = value

    @property
    def entry_lo1(self) -> int:
        """EntryLo1, likewise."""
        return self._page[_ENTRY_LO1] & i.ENTRY_LO_WRITABLE

    @entry_lo1.setter
    def entry_lo1(self, value: int) -> None:
        self._page[_ENTRY_LO1] = value

    @property
    def bad_v_addr(self) -> int:
        """BadVAddr, with a copy in the shared page."""
        return self._bad_v_addr

    @bad_v_addr.setter
    def bad_v_addr(self, value: int) -> None:
        self._bad_v_addr = self._page[_BAD_V_ADDR] = value

    @property
    def context(self) -> int:
        """Context, with a copy in the shared page."""
        return self._context

    @context.setter
    def context(self, value: int) -> None:
        self._context = self._page[_CONTEXT] = value

    @property
    def entry_hi(self) -> int:
        """EntryHi, with a copy in the shared page. Setting it changes no ASID."""
        return self._entry_hi

    @entry_hi.setter
    def entry_hi(self, value: int) -> None:
        self._entry_hi = self._page[_ENTRY_HI] = value

    @property
    def index(self) -> int:
        """Index, with a copy in the shared page."""
        return self._index

    @index.setter
    def index(self, value: int) -> None:
        self._index = self._page[_INDEX] = value

    @property
    def page_mask(self) -> int:
        """PageMask, with a copy in the shared page."""
        return self._page_mask

    @page_mask.setter
    def page_mask(self, value: int) -> None:
        self._page_mask = self._page[_PAGE_MASK] = value

    @property
    def exception_base(self) -> int:
        """EBase without the CPU's number."""
        return self.ebase & ~0xFFF

    def advance(self) -> None:
        """Step over the instruction at `pc`."""
        self.registers.advance()

    def _set_entry_hi(self, value: int) -> None:
        old, self.entry_hi = self.entry_hi, value & i.ENTRY_HI_WRITABLE
        if (old ^ value) & 0xFF:
            self.on_space_changed()

    def _set_hwrena(self, value: int) -> None:
        self.hwrena = value & i.HWRENA_WRITABLE
        self.registers.set_user_local_readable(bool(value & i.USER_LOCAL_READABLE))

    # -- MFC0 and MTC0 --------------------------------------------------------------------------

    def read(self, name: str) -> int:
        """What MFC0 gives of a register; 0 for one that is not implemented."""
        value = _READERS[name](self) if name in _READERS else self._plain.get(name, 0)
        return value & _MASK

    def write(self, name: str, value: int) -> None:
        """MTC0."""
        if name in _WRITERS:
            _WRITERS[name](self, value)
        elif name in self._plain:
            self._plain[name] = value

    @property
    def random(self) -> int:
        """The entry that TLBWR replaces next: from the last one down to Wired."""
        span = self.tlb.size - self.wired
        return self.tlb.size - 1 - self._replaced % span if span > 0 else self.tlb.size - 1

    # -- the TLB --------------------------------------------------------------------------------

    def write_translation(self, index: int) -> None:
        """TLBWI, TLBWR: an entry from the registers."""
        entry = entry_of(self.entry_hi, self.page_mask, self.entry_lo0, self.entry_lo1)
        old = self.tlb.write(index, entry)
        for replaced in (old, entry):
            if replaced is not None:
                self.on_translation_replaced(replaced.vpn2, (replaced.mask | 0x1FFF) + 1)

    def write_random_translation(self) -> None:
        """TLBWR."""
        index = self.random
        self._replaced += 1
        self.write_translation(index)

    def read_translation(self) -> None:
        """TLBR: an entry into the registers."""
        entry = self.tlb.entries[self.index % self.tlb.size]
        if entry is None:
            self.entry_lo0 = self.entry_lo1 = self.page_mask = 0
            self._set_entry_hi(self.entry_hi & 0xFF)
            return
        self.page_mask = entry.mask
        self.entry_lo0, self.entry_lo1 = entry.low | entry.is_global, entry.high | entry.is_global
        self._set_entry_hi(entry.vpn2 | entry.asid)

    def probe_translation(self) -> None:
        """TLBP: Index of the entry that matches EntryHi, or P."""
        found = self.tlb.find(self.entry_hi & ~0x1FFF, self.entry_hi & 0xFF)
        self.index = found if found >= 0 else 1 << 31

    def translate(self, address: int, store: bool, user: bool) -> tuple[int, bool, bool]:
        """Guest-physical address, whether it may be written, whether in every address space. Raises `MipsException`."""
        if address >= r.KSEG0:
            if user:
                raise MipsException(r.ADES if store else r.ADEL, 0, address)
            if address < r.KSEG2:
                return address & r.UNMAPPED, True, True
            for start, end, distance in self.moved:
                if start <= address < end:
                    return address + distance, True, True
        elif self._status & r.STATUS_ERL:
            return address, True, False
        return self.tlb.translate(address, self.entry_hi & 0xFF, store)

    # -- memory ---------------------------------------------------------------------------------

    def peek_page(self, address: int) -> bytes:
        """The page that holds `address` as the guest's kernel would read it; empty where nothing is mapped."""
        try:
            physical = self.translate(address & ~0xFFF, False, False)[0]
        except MipsException:
            return b""
        return bytes(self._memory[physical : physical + 4096]) if physical < self._size else b""

    def fetch_word(self, address: int) -> int:
        """The guest's own instruction at `address`, which has just been executed; 0 where none can be read."""
        try:
            physical = self.translate(address, False, self.level == USER_LEVEL)[0]
        except MipsException:
            return 0
        code = self._memory[physical : physical + 4]
        return int.from_bytes(code, self._order) if len(code) == 4 else 0  # type: ignore[arg-type]

    def forget_writes(self) -> None:
        """Nothing is remembered of writes: the hypervisor never stores into memory for this guest."""

    @property
    def state(self) -> tuple[Any, ...]:
        """Everything the guest can see of its processor, as a plain value."""
        registers = self.registers
        names = ("EntryLo0", "EntryLo1", "Context", "PageMask", "Wired", "HWREna", "BadVAddr", "EntryHi", "Status")
        rest = ("IntCtl", "Cause", "EPC", "EBase", "ErrorEPC", "Index")
        return (
            tuple(self.gpr),
            (registers.restart_address, registers.hi, registers.lo, registers.user_local),
            tuple(registers.fpr),
            registers.fcsr,
            tuple(self.read(name) for name in names + rest),
            self.tlb.state,
        )


_READERS: dict[str, Callable[[MipsVirtualCpu], int]] = {
    "Index": lambda cpu: cpu.index,
    "Random": lambda cpu: cpu.random,
    "EntryLo0": lambda cpu: cpu.entry_lo0,
    "EntryLo1": lambda cpu: cpu.entry_lo1,
    "Context": lambda cpu: cpu.context,
    "UserLocal": lambda cpu: cpu.registers.user_local,
    "PageMask": lambda cpu: cpu.page_mask,
    "Wired": lambda cpu: cpu.wired,
    "HWREna": lambda cpu: cpu.hwrena,
    "BadVAddr": lambda cpu: cpu.bad_v_addr,
    "Count": lambda cpu: cpu.board.timer.count,
    "EntryHi": lambda cpu: cpu.entry_hi,
    "Compare": lambda cpu: cpu.board.timer.compare,
    "Status": lambda cpu: cpu.status,
    "IntCtl": lambda cpu: cpu.int_ctl,
    "Cause": lambda cpu: cpu.cause,
    "EPC": lambda cpu: cpu.epc,
    "PRId": lambda cpu: i.PRID,
    "EBase": lambda cpu: cpu.ebase,
    "Config": lambda cpu: cpu.config,
    "Config1": lambda cpu: i.CONFIG1,
    "Config2": lambda cpu: i.CONFIG2,
    "Config3": lambda cpu: i.CONFIG3,
    "ErrorEPC": lambda cpu: cpu.error_epc,
}


def _attribute(name: str, mask: int = _MASK, fixed: int = 0) -> Callable[[MipsVirtualCpu, int], None]:
    """A writer of the bits in `mask`."""

    def write(cpu: MipsVirtualCpu, value: int) -> None:
        setattr(cpu, name, value & mask | fixed)

    return write


def _write_cause(cpu: MipsVirtualCpu, value: int) -> None:
    cpu.cause = cpu.cause & ~i.CAUSE_WRITABLE | value & i.CAUSE_WRITABLE


def _write_wired(cpu: MipsVirtualCpu, value: int) -> None:
    cpu.wired, cpu._replaced = value & cpu.tlb.size - 1, 0


def _write_context(cpu: MipsVirtualCpu, value: int) -> None:
    cpu.context = cpu.context & ~i.CONTEXT_WRITABLE | value & i.CONTEXT_WRITABLE


def _write_config(cpu: MipsVirtualCpu, value: int) -> None:
    cpu.config = cpu.config & ~i.CONFIG_WRITABLE | value & i.CONFIG_WRITABLE


def _write_status(cpu: MipsVirtualCpu, value: int) -> None:
    cpu.status = value & i.STATUS_WRITABLE


def _write_count(cpu: MipsVirtualCpu, value: int) -> None:
    cpu.board.timer.count = value
    cpu.on_timer_changed()


def _write_compare(cpu: MipsVirtualCpu, value: int) -> None:
    cpu.board.timer.compare = value
    cpu.on_timer_changed()


def _write_user_local(cpu: MipsVirtualCpu, value: int) -> None:
    cpu.registers.user_local = value


_WRITERS: dict[str, Callable[[MipsVirtualCpu, int], None]] = {
    "Index": _attribute("index", i.TLB_SIZE - 1),
    "EntryLo0": _attribute("entry_lo0", i.ENTRY_LO_WRITABLE),
    "EntryLo1": _attribute("entry_lo1", i.ENTRY_LO_WRITABLE),
    "Context": _write_context,
    "UserLocal": _write_user_local,
    "PageMask": _attribute("page_mask", i.PAGE_MASK_WRITABLE),
    "Wired": _write_wired,
    "HWREna": MipsVirtualCpu._set_hwrena,
    "Count": _write_count,
    "EntryHi": MipsVirtualCpu._set_entry_hi,
    "Compare": _write_compare,
    "Status": _write_status,
    "IntCtl": _attribute("int_ctl", i.INT_CTL_WRITABLE, i.INT_CTL),
    "Cause": _write_cause,
    "EPC": _attribute("epc"),
    "EBase": _attribute("ebase", i.EBASE_WRITABLE, i.EBASE),
    "Config": _write_config,
    "ErrorEPC": _attribute("error_epc"),
}
