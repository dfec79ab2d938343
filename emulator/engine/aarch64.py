"""What an AArch64 engine has besides what every engine has: registers, system registers, translation table bases.

Room: `emulator/engine`. Names and encodings are those of the Arm Architecture Reference Manual (DDI 0487). Every
exception exits as a FAULT: `Exit.vector` is its class (ESR_ELx.EC), `Exit.error` the whole syndrome, `Exit.address`
the faulting address of an abort; PC is what ELR_EL1 would be. WFI exits as HALT at full privilege, PC behind it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from emulator.engine.protocol import Engine

SP = 31
"""Index of the current stack pointer among the general registers."""

MAY_MASK, MAY_ZERO, MAY_TYPE, MAY_CACHE = 1 << 9, 1 << 14, 1 << 15, 1 << 26
"""SCTLR_EL1.UMA (DAIF), DZE (DC ZVA), UCT (CTR_EL0), UCI (cache maintenance by address)."""
USER_MAY = MAY_MASK | MAY_ZERO | MAY_TYPE | MAY_CACHE


class QuietAccess(NamedTuple):
    """A load or store of a device's register that needs no exit: plain, of one general register, at one place."""

    pc: int
    """Guest-virtual address of the instruction."""
    address: int
    """Guest-virtual address that it accesses; it must not be mapped."""
    register: int
    """0 to 30."""
    answer: int = 0
    """What is loaded."""
    tag: int = -1
    """Of a store, whose lowest byte is kept and handed up with it, 0 or more; -1 for a load."""


class PassingAccess(NamedTuple):
    """A plain load or store of one general register that may pass by a `Passage`; a load fills up with zeros."""

    pc: int
    """Guest-virtual address of the instruction."""
    register: int
    """0 to 30."""
    size: int
    """1, 2, 4 or 8 bytes."""
    store: bool


class Passage(NamedTuple):
    """A page that is not mapped and whose aligned accesses are done in memory, where an entry says when they come."""

    page: int
    """Guest-virtual address, less the last 12 bits."""
    tag: int
    """What the word that opens it must be."""
    entry: int
    """Engine-physical address of the entry of 64 bits; bits 47 to 12 of it are the frame's address."""
    like: int
    """What the other bits of the entry must be."""
    most: int
    """Accesses by one entry in a row that need no exit."""


class AArch64Registers(Protocol):
    """The registers of an AArch64 CPU, readable and writable while an exit is handled, and between runs."""

    @property
    def gpr(self) -> memoryview:
        """Thirty-two 64-bit words: X0..X30, and the stack pointer in use."""
        ...

    pc: int
    level: int
    """The real exception level, 0 or 1 (EL1 with its own stack pointer: EL1h). Changing it changes no stack pointer."""
    stepping: bool
    """Whether one instruction runs at EL0 and raises a software step exception behind it."""
    nzcv: int
    """The condition flags at their place in PSTATE, bits 31-28."""
    daif: int
    """The real interrupt masks at their place in PSTATE, bits 9-6."""
    thread: int
    """TPIDR_EL0."""
    thread_read_only: int
    """TPIDRRO_EL0."""

    def advance(self) -> None:
        """Move PC over an instruction."""
        ...

    @property
    def pstate(self) -> int:
        """The whole PSTATE as SPSR_ELx would have it."""
        ...

    def system(self, register: int) -> int:
        """A real system register by its 16-bit name (`emulator.isa.aarch64.encoding.register`)."""
        ...

    def set_system(self, register: int, value: int) -> None:
        """Load a real system register that nothing but instructions reading it depends on: no translation control."""
        ...

    def vector(self, number: int) -> int:
        """V0..V31 as a 128-bit number."""
        ...

    def set_vector(self, number: int, value: int) -> None:
        """Load V0..V31."""
        ...

    fpcr: int
    fpsr: int
    monitor: tuple[int, int, int]
    """The local exclusive monitor: address (all ones for none), and the two doublewords that were there."""

    def enter_level_1(self) -> None:
        """Go to EL1 with its own stack pointer and all interrupts masked, as an exception does."""
        ...

    def clear_exclusive(self) -> None:
        """Clear the local exclusive monitor, as an exception return does."""
        ...


class AArch64Engine(Engine, Protocol):
    """An AArch64 CPU with its memory, driven by one handler."""

    @property
    def registers(self) -> AArch64Registers:
        """The CPU's registers: one object for the engine's lifetime."""
        ...

    def set_roots(self, lower: int, upper: int, view: int = 0) -> None:
        """Run in `view`, 0 or 1, with these tables in TTBR0_EL1 and TTBR1_EL1.

        What is cached of a view is used in it alone, and stays while another one runs; it is forgotten when the view
        gets other tables than it had.
        """
        ...

    def trust_mappings(self) -> None:
        """From now on no page is mapped writable and executable at a time, and code that is written is told
        (`code_changed`, another mapping): stores need not be looked at for it."""
        ...

    def forget_page(self, address: int) -> None:
        """Forget what is cached of the page of 4 KiB at an address, in both views.

        It must have been mapped by an entry of its own, and no larger one may be in use.
        """
        ...

    def set_control(self, sctlr: int, tcr: int, mair: int) -> None:
        """Load SCTLR_EL1, TCR_EL1 and MAIR_EL1; roots must be set before SCTLR_EL1.M is."""
        ...

    def allow_user(self, allowed: int, counters: bool = False) -> None:
        """What EL0 may do without an exit: any of the bits `USER_MAY` of SCTLR_EL1, and no others.

        With `counters` EL0 may access the performance monitors. None of them counts, so that PMCCNTR_EL0 and
        PMEVCNTR0_EL0..PMEVCNTR3_EL0 keep what is written to them, 64 bits each.
        """
        ...

    def ask_floating_point(self, rights: memoryview) -> None:
        """From now on the first of these words of 64 bits says, as CPACR_EL1 would, whether floating point runs at EL0:
        for a guest's kernel in view 0, for its user code in view 1.

        It is looked at when the view or the level changes, behind each write of a system register that EL0 may have,
        and when the driver has changed it (`floating_point_changed`).
        """
        ...

    def floating_point_changed(self) -> None:
        """See `ask_floating_point`."""
        ...

    def break_at(self, addresses: Sequence[int], asked: Callable[[int], bool]) -> None:
        """From now on call `asked` before an instruction at one of `addresses`; True ends in a BREAKPOINT exit."""
        ...

    def withhold_timer(self) -> None:
        """From now on accesses to the generic timer are undefined at every level, so that a driver does them.

        Raises `EngineMissing` where the engine cannot.
        """
        ...

    def show_identity(self, values: Mapping[int, int]) -> None:
        """From now on identification registers read as `values` says, by their 16-bit names, wherever they may be read.

        Raises `EngineMissing` for a register that the engine does not have.
        """
        ...

    def be_quiet(self, accesses: Sequence[QuietAccess]) -> None:
        """From now on these accesses, and no others, need no exit. An engine may do fewer, or none.

        After some loads without a store a load exits: the guest waits for something.
        """
        ...

    def answer_counter(self, scale: int, offset: int, shift: int) -> None:
        """From now on CNTVCT_EL0 reads progress * `scale` + `offset`, shifted right by `shift`, without an exit.

        Only while EL0 may access the performance monitors (`allow_user`); with a scale of 0 every read exits again.
        """
        ...

    def take_answered(self) -> int:
        """How many reads of the counter were answered since this was asked last."""
        ...

    def prepare_passages(self, base: int, memory: memoryview, kinds: memoryview, word: memoryview) -> None:
        """Passages lead to `memory`, which is at engine-physical `base`.

        `kinds` has a byte for each page of it: where that is above 1 a store exits. `word`, of 64 bits, opens a page.
        """
        ...

    def let_pass(self, passage: Passage | None, accesses: Sequence[PassingAccess] = ()) -> None:
        """From now on these accesses to this page, and no others, need no exit. An engine may do fewer, or none."""
        ...

    passing: tuple[int, int]
    """The entry that was last passed by, and how many accesses more there were by it in a row."""

    def take_passed(self) -> int:
        """How many accesses have passed by since this was asked last."""
        ...

    def hand_up_stores(self, late: Callable[[int, bytes], None]) -> None:
        """Quiet stores are handed up as `late(tag, bytes)`, in order, before the exit that comes behind them.

        Those of one tag that came one after the other come together.
        """
        ...

    def see_all_stores(self) -> None:
        """From now on code that was changed by a store through any mapping is executed as it is, at a price."""
        ...
