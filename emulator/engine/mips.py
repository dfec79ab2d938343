"""What a MIPS32 engine has besides what every engine has: registers, branch delay, views of translations.

Room: `emulator/engine`. A view is what one privilege mode sees: a flat map of pages that the caller fills when it is
asked to (`ExitKind.MISS`). At full privilege the processor's own segments and TLB are used instead. Register and bit
names are those of MIPS Architecture For Programmers, volumes II and III.
"""

from collections.abc import Callable
from typing import Protocol

from emulator.engine.protocol import Engine

KERNEL, SUPERVISOR, USER = 0, 1, 2
"""Privilege modes, as in Status.KSU; with views of translations, SUPERVISOR and USER are two views."""

READ, WRITE, EXECUTE = 1, 2, 4
"""Rights of a page in a view."""

LOAD, STORE, FETCH = 0, 1, 2
"""`Exit.error` of a MISS: what was tried."""

REFILL = 1
"""`Exit.error` of a TLB exception: no entry matched, as against one that is not valid."""

DEBUG_BREAKPOINT = 0x20
"""`Exit.vector` of SDBBP, which has no code in Cause."""


class MipsRegisters(Protocol):
    """The registers of a MIPS32 CPU, readable and writable while an exit is handled, and between runs."""

    @property
    def gpr(self) -> memoryview:
        """Thirty-two 32-bit words; word 0 must stay 0."""
        ...

    pc: int
    """Address of the next instruction. Writing it leaves the branch delay as it is; see `jump`."""
    hi: int
    lo: int
    user_local: int
    """UserLocal, as RDHWR $29 shows it."""

    @property
    def in_delay_slot(self) -> bool:
        """Whether the instruction at `pc` is in a branch delay slot: the branch before it is done but for its jump."""
        ...

    @property
    def restart_address(self) -> int:
        """Where to begin again: `pc`, or the branch before it when `pc` is in a delay slot (EPC)."""
        ...

    def behind(self) -> int:
        """Address of the instruction that follows the one at `pc`, a branch that is under way taken into account."""
        ...

    def jump(self, address: int) -> None:
        """Go on at `address`, outside of any delay slot."""
        ...

    def advance(self) -> None:
        """Step over the instruction at `pc`."""
        ...

    mode: int
    """KERNEL, SUPERVISOR or USER: which view is used, and whether privileged instructions trap."""

    def set_coprocessor(self, usable: bool, wide: bool) -> None:
        """Whether COP1 instructions run (Status.CU1), and whether its registers are 64 bits wide (Status.FR)."""
        ...

    def set_user_local_readable(self, readable: bool) -> None:
        """Whether RDHWR $29 runs outside of kernel mode (HWREna.ULR)."""
        ...

    @property
    def fpr(self) -> memoryview:
        """The coprocessor's registers as 64-bit words: register n is word 2n."""
        ...

    fcsr: int
    """Control and status of the coprocessor. Writing it does not change the rounding mode until the guest loads it."""
    branch: tuple[int, int, int]
    """The branch under way: its kind (0 for none), where it goes, and whether; numbers of the engine's own. Setting it
    raises `ValueError` for a kind that is none."""
    monitor: tuple[int, int]
    """The linked address, or an odd one for none, and the word that was there."""

    def load_fcsr(self, value: int) -> None:
        """Write control and status of the coprocessor, rounding mode included."""
        ...

    def break_link(self) -> None:
        """The next SC fails (LLbit := 0), as an exception return has it."""
        ...

    def cp0(self, name: str) -> int:
        """A register of the real coprocessor 0, by name: what full privilege works with."""
        ...

    def set_cp0(self, name: str, value: int) -> None:
        """Write a register of the real coprocessor 0."""
        ...


class MipsEngine(Engine, Protocol):
    """A MIPS32r2 CPU with its memory, driven by one handler."""

    @property
    def byte_order(self) -> str:
        """ "little" or "big"."""
        ...

    @property
    def registers(self) -> MipsRegisters:
        """The CPU's registers: one object for the engine's lifetime."""
        ...

    def use_views(self, enabled: bool) -> None:
        """Translate by the views (deprivileged), or by the processor's own segments and TLB."""
        ...

    def map_page(self, view: int, address: int, physical: int, rights: int) -> None:
        """Enter the page at `address` into a view. Fewer rights than before need `unmap_page` first."""
        ...

    def unmap_page(self, view: int, address: int) -> None:
        """Take a page out of a view."""
        ...

    def mapped(self, view: int, address: int) -> int:
        """What a view has for a page: physical address and rights, or 0."""
        ...

    def view_memory(self, view: int) -> memoryview:
        """A view as memory: a word a page, as `mapped` gives it. `flush_tlb` must follow a change."""
        ...

    def clear_view(self, view: int, first: int = 0, end: int = 1 << 32) -> None:
        """Take all pages from `first` up to `end` out of a view."""
        ...

    def withhold_counters(
        self,
        read_count: Callable[[], int],
        write_count: Callable[[int], None],
        write_compare: Callable[[int], None],
        random: Callable[[bool], int],
        tlb_size: int,
    ) -> None:
        """At full privilege: leave Count, Compare and Random to the caller, and give the TLB `tlb_size` entries.

        `random(True)` is asked for the entry that TLBWR replaces now, `random(False)` for what MFC0 shows. A BUDGET
        exit comes before a block at which Status and Cause let an interrupt in.
        """
        ...

    def frame_at(self, physical: int) -> memoryview:
        """The 4096 bytes of memory around a physical address. Raises ValueError where there is none."""
        ...

    def frame_changed(self, physical: int, size: int) -> None:
        """Bytes of memory that may have been executed were changed."""
        ...
