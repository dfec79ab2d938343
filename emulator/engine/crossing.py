"""Where a deprivileged guest's kernel is entered and left without an exit, on an engine that can do so.

Room: `emulator/engine`, as data. The instructions are x86-64's SYSCALL and SYSRET. All addresses are guest-virtual, in
the kernel's tables, in the first or last 2 GiB.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Crossing:
    """What the engine's own code needs to know. Roots, and when, are `X86Engine.open_crossing`'s."""

    enter: int = 0
    """Code at which the kernel is entered, at level 3, with R11 in RSP. It does what is left to do of SYSCALL; RSP is
    in the trap's frame (`CrossingEngine.call_frame`). If that is not of a SYSCALL at all, user code has raised a divide
    error."""
    enter_end: int = 0
    """Behind that code: a guest within it is between two instructions of its own."""
    saved: int = 0
    """Two words: RCX as SYSCALL leaves it; and behind it R11, at a page fault alone."""
    leave: int = 0
    """A division by zero of the hypervisor's in the kernel's tables, that does SYSRET to 64-bit code. What must be
    looked at before has been, by the code that leads there; a kernel that goes there by itself harms itself."""
    user_code: int = 0
    """Selector of CS that SYSRET loads."""
    fault: int = 0
    """Code behind that for entering, at which a page fault of user code arrives in the kernel's tables, at level 3,
    with the address that it is about in RSP and all registers but RCX and R11, which are saved as above. 0 where such
    faults exit."""
    back: int = 0
    """A HLT of the hypervisor's in the kernel's tables at which RAX is stored, as an entry of a page, at the offset RCX
    in `tables`, and IRETQ done to the address in RDX with the RSP and the flags that there are. 0 for none."""
    back_together: int = 0
    """Another, at which sixteen entries are stored that are at the offset RAX of `blocks`."""
    clear: int = 0
    """Another, at which the entry at the offset RCX is cleared; the kernel goes on behind it without what was in RCX,
    R11 and the flags."""
    trapped: int = 0
    """Code at which a general-protection fault of the kernel's own arrives, at level 3, where the last byte of its RIP
    is one that was asked for (`lead_traps`) and its error code 0; RCX and R11 are saved as at a page fault. 0 where all
    exit. Only where there is `back`."""
    back_saved: tuple[int, ...] = ()
    """Words with RAX, RCX, RDX, RSI and RDI for user code."""
    blocks: int = 0
    """Where 32 KiB of such entries are, in the kernel's tables."""
    tables: int = 0
    """Engine-physical address of the page tables."""
    tables_size: int = 0
    """Bytes of them, a power of two."""


NOWHERE: Final = Crossing()
