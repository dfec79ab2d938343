"""What an engine tells its caller: the `Exit` value.

Room: `emulator/engine`. An exit says *what happened* to the running CPU in architectural terms;
how the engine noticed is the engine's own. One `Exit` object is reused by an engine for all of
its exits, since an exit is the hottest path of the house: a handler must not keep it.
"""

from enum import IntEnum

_PAGE_FAULT = 14

SYSCALL, SYSENTER = 0x05, 0x34
"""What `vector` of a SYSTEM_CALL says on x86: the instruction's second byte."""


class ExitKind(IntEnum):
    """Why the CPU stopped executing guest instructions."""

    FAULT = 0
    """An exception: `vector`, `error`, and for page faults `address`. RIP is at the instruction
    for faults and behind it for traps, as the manual has it."""
    SOFTWARE_INTERRUPT = 1
    """INT n, INT3 or INTO: `vector`. RIP is at the instruction, `length` is its length. The gate's privilege is not
    looked at."""
    SYSTEM_CALL = 2
    """x86 SYSCALL, and SYSENTER outside 64-bit mode; `vector` says which. RIP is at the instruction, `length` is its
    length."""
    PORT_READ = 3
    """IN or INS: `port`, `size` (bytes); the handler sets `value`, or `refused` to have the
    instruction raise #GP (a FAULT exit follows). It leaves the registers as they are."""
    PORT_WRITE = 4
    """OUT or OUTS: `port`, `size` (bytes), `value`; the handler may set `refused`, as above. One that is `late` came
    before the exit that follows it, and the registers are not its own."""
    IDENTIFY = 5
    """CPUID, on an engine that reports it. RIP is at the instruction, `length` is 2. The handler
    writes the result registers, and the engine steps over the instruction; or it sets `refused`, as for ports."""
    TIME_STAMP = 6
    """RDTSC at full privilege, on an engine that reports it; as IDENTIFY."""
    BUDGET = 7
    """The progress budget is used up (a tick): the handler sets the next one. RIP is at an instruction boundary."""
    HALT = 8
    """HLT at full privilege. RIP is behind it."""
    UNBACKED = 9
    """An access to physical memory that nothing backs, or a fetch from a device; `error` is as for a MISS. RIP is at
    the instruction."""
    MISS = 10
    """No translation, on an engine whose translations its caller gives: the page `address`, and what was tried as
    `error` (0 load, 1 store, 2 fetch). The handler maps the page, or sets `refused` with `vector` and `error` of the
    exception that the instruction then raises (a FAULT exit follows)."""
    BREAKPOINT = 11
    """The caller asked for it, by `break_at`, before the instruction at `address`, where PC is."""


class Exit:
    """One exit. Fields not named by its kind are meaningless."""

    __slots__ = ("address", "error", "kind", "late", "length", "port", "refused", "size", "value", "vector")

    def __init__(self) -> None:
        self.kind = ExitKind.BUDGET
        self.vector = 0
        self.error = 0
        self.address = 0
        self.length = 0
        self.port = 0
        self.size = 0
        self.value = 0
        self.refused = False
        self.late = False


def describe(exit_: Exit) -> str:
    """An exit for a trace: its kind, and what its kind says."""
    kind = ExitKind(exit_.kind)
    text = kind.name.lower()
    if kind is ExitKind.FAULT:
        text += f" {exit_.vector} error {exit_.error:#x}"
        if exit_.vector == _PAGE_FAULT:
            text += f" address {exit_.address:#x}"
    elif kind in (ExitKind.PORT_READ, ExitKind.PORT_WRITE):
        text += f" port {exit_.port:#x} size {exit_.size} value {exit_.value:#x}"
    elif kind is ExitKind.SOFTWARE_INTERRUPT:
        text += f" {exit_.vector:#x}"
    return text
