"""The interface between guest-side code and the hypervisor: addresses and the shared page.

Room: `paravirt`. Fixups (made by `bt`) and the hypervisor agree through this file only. The constants are x86-64's;
every instruction set has a `Window` with the same fields at addresses of its own. On x86-64 the
fixups and the shared page are mapped by the hypervisor, in the guest-kernel view only, in the
last 2 MiB of the address space: reachable by a 32-bit displacement both from kernels in the top
2 GiB and, wrapping around, from kernels in the low 2 GiB, and unused by Linux ("unused hole" in
Documentation/arch/x86/x86_64/mm.rst). Nothing the guest writes to the shared page is trusted.
"""

from dataclasses import dataclass

ABI_VERSION = 1
"""Raised at every change of an address, an offset or a meaning below."""

HYPERVISOR_BASE = 0xFFFF_FFFF_FFE0_0000
"""First address of the hypervisor's window in the guest-kernel view."""

FIXUP_BASE = HYPERVISOR_BASE
"""First address of the fixups, mapped read-execute."""

FIXUP_SIZE = 0x1E_0000
"""Bytes reserved for fixups."""

SHARED_PAGE = HYPERVISOR_BASE + FIXUP_SIZE
"""The page of virtual CPU state shared with the guest kernel, mapped read-write, no execute.
As a sign-extended 32-bit displacement it is reachable from any 64-bit code."""

INTERRUPT_DELTA = 0x00
"""Offset, 64 bits: 0 when the virtual interrupt flag is set, -0x200 when it is clear. The real
interrupt flag of a deprivileged guest reads as 1, so real RFLAGS + delta = virtual RFLAGS."""

INTERRUPTS_ENABLED = 0
INTERRUPTS_DISABLED = -0x200

INTERRUPT_PENDING = 0x08
"""Offset, 64 bits: not 0 while an interrupt waits for the flag. Written by the hypervisor."""

SCRATCH = 0x10
"""Offset: eight 64-bit words that a fixup may use between its first and last instruction."""

SCRATCH_WORDS = 8

IO_PRIVILEGE = 0x50
"""Offset, 64 bits: the virtual IOPL at its place in RFLAGS (bits 12-13), written by the hypervisor. The real IOPL of a
deprivileged guest is 0, so real RFLAGS + delta + this = virtual RFLAGS."""

RING_OF_SELECTORS = 3
"""The real CS and SS of a deprivileged kernel are the virtual ones plus this; DS, ES, FS and GS hold the guest's own
selectors. So reads of selectors need no exit."""

CONTROL_REGISTERS = 0x80
"""Offset: 64-bit copies of the virtual CR0, CR2, CR3, CR4 at +0x00, +0x10, +0x18, +0x20,
written by the hypervisor, so that reads of them can be inline."""

TASK_SWITCHED = 0x1A0
"""Offset of three words by which an x86 kernel writes CR0.TS without an exit: CR0 with TS clear; the negative of that;
and the negative of what CR0 may be written with besides: TS set while the real one is, and otherwise the second
word again. Written by the hypervisor. Of CR0's copy the guest may change TS."""

KERNEL_GS_BASE = 0x100
"""Offset: the virtual KERNEL_GS_BASE, which a SWAPGS without an exit exchanges with the real GS base."""

TIME_BASE = 0x108
"""Offset: virtual time, in nanoseconds, at which the real counter was the negative of the next word (modulo 2^64).
These four words serve RDTSC on engines that ask for it: virtual time is base + (counter + word) * scale / 2^32."""

TIME_COUNTER = 0x110

TIME_SCALE = 0x118

TIME_SEEN = 0x120
"""Offset: what an RDTSC without an exit gave last. The next one gives no less."""

QUIET_PORT = 0x128
"""Offset: the negative of a port (in 16 bits), a byte read from which is QUIET_VALUE; written by the hypervisor. Where
there is none it is that of NO_PORT, which reads as an open bus does."""

QUIET_VALUE = 0x130

NO_PORT = 0xFFFF

SELECTORS = 0x140
"""Offset: six 64-bit words, the guest's selectors in ES, CS, SS, DS, FS and GS while its kernel runs, for engines whose
real ones are others; written by the hypervisor."""

CROSSING_CODE = FIXUP_BASE + FIXUP_SIZE - 0x1000
"""The last page of the fixups is the hypervisor's own: code at which the kernel is entered, and a division by zero by
which it is left, on engines that need no exit for that. The words below serve both."""

CROSSING_SAVED = 0x170
"""Offset, two words: RCX as SYSCALL leaves it; or RCX and R11 of user code at a page fault."""

CROSSING_TARGET = 0x180
"""Offset: where the kernel goes on once it is entered, written by the hypervisor."""

CROSSING_LEAVE = 0x188
"""Offset: guest-virtual address of that division, written by the hypervisor."""

CROSSING_THREAD = 0x190
"""Offset: the FS base with which user code may be gone back to without an exit, written by the hypervisor; NO_THREAD
for none."""

NO_THREAD = 1 << 63

CROSSINGS = 0x198
"""Offset: how often the kernel was entered without an exit, for reports."""

CROSSING_FAULT = 0x1C0
"""Offset of seven words, of the last page fault of user code that reached its kernel, or began to, without an exit:
what the processor gave as its error, RIP, RFLAGS, RSP and address; how many reached it; where the handler is."""

CROSSING_REGISTERS = 0x1F8
"""Offset of eight words for the code between."""

RETURN_THREAD = 0x240
"""Offset: the FS base with which user code may be gone back to by IRETQ without an exit, written by the hypervisor;
NO_THREAD for none."""

RETURN_CODE = 0x248
"""Offset: where the hypervisor's code is that does so, written by the hypervisor."""

RETURN_SLOW = 0x250
"""Offset: where that code goes on when it does not, written by the fixup."""

RETURN_WORDS = 0x258
"""Offset of eight words of that code (`paravirt.modes.x86.user_returns`)."""

RETURN_REGISTERS = 0x298
"""Offset of nine words for its registers."""

INVALIDATE_WORDS = INVALIDATE_CODE = 0x2E0
"""Offset of nine words for INVLPG without an exit. The first is where the hypervisor's code is, 0 for nowhere."""

TRAPPED_WORDS = 0x328
"""Offset of six words for traps of the kernel's without an exit (`paravirt.modes.x86.kernel_traps`)."""

INVALIDATE_ADDRESS = 0x2E8
"""Offset: the operand, written by the fixup."""

INVALIDATE_BEHIND = 0x2F0
"""Offset: the HLT of the fixup, behind which that code goes on; written by the fixup."""

INVALIDATE_LIST = 0x600
"""Offset of 32 words: addresses of INVLPGs that were done so."""

RETURN_LOG = 0x400
"""Offset of 32 pairs of words: entries of user code's tables that were made so, by offset in the tables, and what the
guest's entry was."""


@dataclass(frozen=True, slots=True)
class Window:
    """The hypervisor's window in the guest kernel's view, for one instruction set: the same fields where they mean the
    same. Offsets are into the shared page."""

    isa: str
    """Name of the instruction set."""
    base: int
    """Guest-virtual address of the window and of the fixups in it."""
    fixup_size: int
    """Bytes reserved for fixups, in whole pages; the shared page is behind them."""
    size: int
    """Bytes of the whole window."""
    word: int
    """Bytes of a word of the shared page, and of a guest-virtual address: 4 or 8."""
    interrupt_state: int
    """Offset of the word that holds the virtual interrupt flag."""
    enabled: int
    """Its value when interrupts are enabled."""
    disabled: int
    """Its value when they are not."""
    pending: int
    """Offset of the word that is not 0 while an interrupt waits for the flag; written by the hypervisor."""
    scratch: int
    """Offset of the words that a fixup may use between its first and last instruction."""
    scratch_words: int
    """How many."""
    registers: int
    """Offset of copies of virtual registers, written by the hypervisor, for reads without an exit."""
    fixups_at: int = -1
    """Guest-virtual address of the fixups, where they lie apart from the shared page."""

    @property
    def fixups(self) -> int:
        """Guest-virtual address of the first fixup."""
        return self.base if self.fixups_at < 0 else self.fixups_at

    @property
    def shared_page(self) -> int:
        """Guest-virtual address of the page of virtual CPU state shared with the guest kernel."""
        return self.base + self.fixup_size

    @property
    def last_address(self) -> int:
        """The last guest-virtual address there is."""
        return (1 << 8 * self.word) - 1

    @property
    def end(self) -> int:
        """The first guest-virtual address behind the shared page."""
        return self.base + self.fixup_size + 4096


X86_64 = Window(
    isa="x86-64",
    base=HYPERVISOR_BASE,
    fixup_size=FIXUP_SIZE,
    size=0x20_0000,
    word=8,
    interrupt_state=INTERRUPT_DELTA,
    enabled=INTERRUPTS_ENABLED,
    disabled=INTERRUPTS_DISABLED,
    pending=INTERRUPT_PENDING,
    scratch=SCRATCH,
    scratch_words=SCRATCH_WORDS,
    registers=CONTROL_REGISTERS,
)

I386 = Window(
    isa="i386",
    base=0xFF20_0000,
    fixup_size=FIXUP_SIZE,
    size=0x20_0000,
    word=4,
    interrupt_state=INTERRUPT_DELTA,
    enabled=INTERRUPTS_ENABLED,
    disabled=INTERRUPTS_DISABLED,
    pending=INTERRUPT_PENDING,
    scratch=SCRATCH,
    scratch_words=SCRATCH_WORDS,
    registers=CONTROL_REGISTERS,
)
"""As x86-64's with words of 32 bits. The place is in the area that Linux keeps for the local descriptor tables of
isolated page tables (LDT_BASE_ADDR in arch/x86/include/asm/pgtable_32_areas.h), with PAE and without; on a processor
that needs no isolation nothing is ever mapped there. A guest that does map something there is refused."""

ARM_STATUS = 0x08
"""ARMv7: offset of the guest's mode, A and F as CPSR has them, less what the real processor shows there (User mode,
both clear): written by the hypervisor."""

ARM_THREAD = 0x20
"""ARMv7: offset of the guest's TPIDRURW while its kernel runs, which the kernel's fixups read and write."""

ARM_THREADS_PLAIN = {"TPIDRPRW": 0, "TPIDRURO": 1, "TPIDRURW": -1}
ARM_THREADS_EXCHANGED = {"TPIDRPRW": 1, "TPIDRURO": 0, "TPIDRURW": -1}
"""ARMv7: where the guest's thread registers are while its kernel runs: in the real TPIDRURW (0), the real TPIDRURO (1),
or in the shared page (-1). Plain: a read of TPIDRURO is right as it stands. Exchanged: a rewriter has put TPIDRURW in
the place of TPIDRURO, which the kernel may then write without an exit, and TPIDRURO in the place of TPIDRPRW for reads.
"""

ARM_CACHE_TYPE = 0x24
"""ARMv7: offset of a copy of CTR."""

ARM_USER_LIMIT = 0x28
"""ARMv7: offset of the address below which the kernel has no page mapped that user code may not touch in the same way,
less seven: there an unprivileged access may run as it is."""

ARM_FLOATING_POINT = 0x30
"""ARMv7: offset of the guest's CPACR, of which its kernel changes cp10 and cp11 by a store, and behind it of its FPEXC.
What these let user code and kernel do follows behind the next write of a system register of User mode's."""

ARM_FLOATING_POINT_BITS = 0x00F0_0000
"""ARMv7: CPACR.cp10 and cp11."""

ARM_UNIT, ARM_UNIT_FIRST, ARM_UNIT_END = 0x2000, 0x40, 0x1000
"""ARMv7: the window is made of units of a page of fixups and another mapping of the shared page behind it, so that a
fixup reaches that page relative to PC. Fixups lie from UNIT_FIRST up to UNIT_END of a unit: before, the shared words
would be out of reach."""

ARMV7 = Window(
    isa="armv7",
    base=0xBFC0_0000,
    fixup_size=0x1F_E000,
    size=0x20_0000,
    word=4,
    interrupt_state=0x00,
    enabled=0,
    disabled=0x80,
    pending=0x04,
    scratch=0x10,
    scratch_words=4,
    registers=0x24,
)
"""In the last 2 MiB of where Linux puts its modules, below its page of temporary mappings: within a branch's reach of
the text of a kernel at 0xC0000000, and the first to be used last."""

MIPS_REGISTERS = 0xFFFF_9000
"""MIPS32: guest-virtual address of a second page shared with the guest's kernel, which it may always write."""

MIPS_READABLE = {
    "EPC": 0x00,
    "BadVAddr": 0x04,
    "Context": 0x08,
    "Cause": 0x0C,
    "EntryHi": 0x10,
    "Index": 0x14,
    "PageMask": 0x18,
}
"""MIPS32: registers of coprocessor 0 whose value the page has, by offset."""

MIPS_WRITABLE = {"EPC": 0x00, "EntryLo0": 0x20, "EntryLo1": 0x24}
"""MIPS32: registers that are words of the page: a store there is a write."""

MIPS_SCRATCH = 0x40
"""MIPS32: offset in that page of eight words that a fixup may use between its first and last instruction."""

MIPS_STATUS = 0x80
"""MIPS32: offset in the shared page of Status, but for IE, which is the word of the interrupt state. While an interrupt
waits for IE or EXL alone the page is read-only, so that a store there is seen."""

MIPS_STATUS_BITS = 0x3000_001A
"""MIPS32: bits of Status (CU1, CU0, KSU, EXL) that a store to that word changes, where kernel mode stays such."""

MIPS_STATUS_HELD = 0x84
"""MIPS32: offset of the bits of Status that need a call to change: all but those and IE; and CU1 while the real
coprocessor is usable, since it has to fault from then on. Written by the hypervisor."""

MIPS_FIXUPS = 0x8001_0000
"""MIPS32: guest-virtual address of the fixups, in reach of J from a kernel in KSEG0: in the part of memory that is
YAMON's own (1000H to EFFFFH), where no kernel executes. They can be executed only: loads and stores there are the
guest's memory as ever."""

MIPS32 = Window(
    isa="mips32",
    base=0xFFF8_8000,
    fixup_size=0x7_0000,
    size=0x7_2000,
    word=4,
    interrupt_state=0x00,
    enabled=1,
    disabled=0,
    pending=0x04,
    scratch=0x10,
    scratch_words=8,
    registers=0x80,
    fixups_at=MIPS_FIXUPS,
)
"""The shared page is in the last 32 KiB of the address space, above Linux's fixed mappings (FIXADDR_TOP): a load or
store with $0 as its base reaches it in one word. Interrupts are enabled while the word of the interrupt state is not 0.
The fixups lie apart from it; nothing is mapped below the shared page."""

AARCH64 = Window(
    isa="aarch64",
    base=0xFFFF_8000_07E0_0000,
    fixup_size=0x1F_F000,
    size=0x20_0000,
    word=8,
    interrupt_state=0x00,
    enabled=0,
    disabled=0x80,
    pending=0x08,
    scratch=0x40,
    scratch_words=8,
    registers=0x80,
)
"""In the last 2 MiB below where Linux links its kernel for 48-bit addresses: within a branch's reach of kernel and
modules, and the last that would be used for modules. The real interrupt masks of a deprivileged guest are the virtual
ones, so the word of the interrupt flag is not used."""

AARCH64_STAND_INS = {
    "SP_EL0": "TPIDRRO_EL0",
    "TPIDR_EL1": "TPIDR_EL0",
    "ELR_EL1": "PMEVCNTR1_EL0",
    "SPSR_EL1": "PMEVCNTR2_EL0",
    "ESR_EL1": "PMEVCNTR3_EL0",
    "FAR_EL1": "PMCCNTR_EL0",
}
"""AArch64: registers of EL1, and the registers of EL0 that hold them while the guest's kernel runs. The first can be
read only; user code never sees the others' contents, since the performance monitors are closed to it."""

AARCH64_SCRATCH = "PMEVCNTR0_EL0"
"""AArch64: a register that a fixup may use between its first and last instruction."""

AARCH64_UNMAPPED = 0x20
"""AArch64: offset of the operand of the last TLBI by address and of any address space that has nothing to invalidate:
the page has not been mapped since. Written by the hypervisor; all ones where there is none."""

AARCH64_FLOATING_POINT = 0x28
"""AArch64: offset of the guest's CPACR_EL1, of which its kernel changes FPEN by a store. What user code and kernel may
do follows behind the next write of a system register of EL0's."""

AARCH64_FLOATING_POINT_BITS = 3 << 20
"""AArch64: CPACR_EL1.FPEN."""

WINDOWS: dict[str, Window] = {window.isa: window for window in (X86_64, ARMV7, I386, MIPS32, AARCH64)}
"""The window of each instruction set whose guests are rewritten."""
