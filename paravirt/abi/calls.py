"""The para-virtual calls: numbers, arguments, results and errors, one row a call.

Room: `paravirt/abi`, data only. The guest's C header, the assembler include, the documentation and the hypervisor's
dispatch (`paravirt.para`) all come from `CALLS`. A row is never changed or removed once it was released, and a
number is never used again: then `ABI_MAJOR` would have to rise.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

ABI_MAJOR: Final = 1
"""Raised when something that a guest may use changes or goes."""
ABI_MINOR: Final = 0
"""Raised when something is added."""
PARA_VERSION: Final = ABI_MAJOR << 16 | ABI_MINOR
"""What the call VERSION gives, and the ELF note of a para-virtual kernel holds."""


class Status(IntEnum):
    """What a call gives when it is not done: the negative of these is the result."""

    UNKNOWN_CALL = 1
    """There is no call of this number."""
    INVALID = 2
    """An argument is none that the call takes."""
    BAD_ADDRESS = 3
    """Memory that an argument points to is not there for the guest's kernel, or not to be written."""
    REFUSED = 4
    """Isolation forbids it: a page of another's, a page table mapped writable, a type in use."""
    TOO_MUCH = 5
    """More elements than one call takes, or than there is room for."""
    UNSUPPORTED = 6
    """The call is known and there is no such thing here: pinning where tables are shadowed, say."""


class Call(IntEnum):
    """Numbers of the calls."""

    VERSION = 0
    CONSOLE_WRITE = 1
    CONSOLE_READ = 2
    SET_TRAP_TABLE = 3
    STACK_SWITCH = 4
    RETURN = 5
    EVENTS_DELIVER = 6
    EVENT_SEND = 7
    TIMER_SET = 8
    TIME = 9
    YIELD = 10
    BLOCK = 11
    SHUTDOWN = 12
    MULTICALL = 13
    THREAD_REGISTER = 14
    CODE_CHANGED = 15
    PTE_UPDATE = 16
    PTE_UPDATE_PAGE = 17
    PIN = 18
    UNPIN = 19
    NEW_BASE = 20
    FLUSH_PAGE = 21
    FLUSH_ALL = 22
    TABLE_OPEN = 23
    TABLE_CLOSE = 24
    PTE_READ = 25


@dataclass(frozen=True, slots=True)
class CallRow:
    """One call."""

    call: Call
    arguments: tuple[str, ...]
    """Names, at most `MOST_ARGUMENTS`; each is a word."""
    meaning: str
    result: str = "0"
    """What the result is when it is not the negative of a `Status`."""
    batch: bool = True
    """Whether it may be an element of a MULTICALL."""


MOST_ARGUMENTS: Final = 4
MOST_BYTES: Final = 1 << 16
"""Bytes that CONSOLE_WRITE and CONSOLE_READ take at a time."""
MOST_ELEMENTS: Final = 4096
"""Elements of one MULTICALL, PTE_UPDATE or SET_TRAP_TABLE. An element of MULTICALL is the number, the result and four
arguments, words; one of PTE_UPDATE pointer and value, 64 bits each."""

CALLS: Final = (
    CallRow(Call.VERSION, (), "Which version of this interface there is.", "major << 16 | minor"),
    CallRow(Call.CONSOLE_WRITE, ("address", "bytes"), "Print bytes on the console.", "bytes printed"),
    CallRow(
        Call.CONSOLE_READ, ("address", "bytes"), "Take what was typed and not yet taken.", "bytes stored, perhaps 0"
    ),
    CallRow(
        Call.SET_TRAP_TABLE,
        ("address", "count"),
        "Where the guest is entered: `count` words at `address`, the handler of each `Trap` in turn; 0 for none. An "
        "event for which there is no handler ends the guest.",
    ),
    CallRow(
        Call.STACK_SWITCH, ("stack",), "The end of the stack on which frames are put when user code is interrupted."
    ),
    CallRow(
        Call.RETURN,
        ("frame",),
        "Go on as the frame at `frame` says, in the kernel or in user code, with interrupts as it says.",
        "none: it does not return unless it fails",
        batch=False,
    ),
    CallRow(
        Call.EVENTS_DELIVER,
        (),
        "Deliver what is pending; for a guest that has enabled interrupts and finds the pending word not zero.",
        batch=False,
    ),
    CallRow(Call.EVENT_SEND, ("port",), "Make an event of a port of one's own (`FIRST_OWN_PORT` and above) pending."),
    CallRow(
        Call.TIMER_SET,
        ("microseconds", "periodic"),
        "The virtual timer's event comes once, or again and again (`periodic` not 0), in so many microseconds; 0 stops "
        "it.",
    ),
    CallRow(Call.TIME, ("address",), "Store the virtual time, nanoseconds in 64 bits."),
    CallRow(Call.YIELD, (), "Let others run; the guest stays ready."),
    CallRow(
        Call.BLOCK,
        (),
        "Wait until an event is pending that is not masked, whether interrupts are enabled or not. A wait that nothing "
        "can end ends the guest.",
        batch=False,
    ),
    CallRow(Call.SHUTDOWN, ("status",), "End the guest; status 0 is success.", "none", batch=False),
    CallRow(
        Call.MULTICALL,
        ("address", "count"),
        "Do `count` calls, each an element of number, result, and four arguments (words); every result is stored. A "
        "failing element does not end the rest.",
        "elements done",
        batch=False,
    ),
    CallRow(Call.THREAD_REGISTER, ("value",), "What user code finds its thread by."),
    CallRow(Call.CODE_CHANGED, ("address", "bytes"), "Code was written; it is about to be executed."),
    CallRow(
        Call.PTE_UPDATE,
        ("address", "count"),
        "Store `count` page-table entries, in order: elements of two 64-bit words, the guest-physical address of the "
        "entry and its new value. It ends at the first that is refused.",
        "entries stored; fewer than `count`: the next one is refused, and alone gives the reason",
    ),
    CallRow(
        Call.PTE_UPDATE_PAGE,
        ("address", "low", "high"),
        "Store the last-level entry that translates `address` in the current address space, `low | high << 32` on "
        "32-bit sets and `low` on 64-bit ones, and flush that page.",
    ),
    CallRow(Call.PIN, ("table", "level"), "The guest-physical page `table` stays a page table of `level` (1: last)."),
    CallRow(Call.UNPIN, ("table",), "It need not stay one."),
    CallRow(
        Call.NEW_BASE,
        ("root", "part"),
        "Switch to the address space of this root, as the processor's register would hold it. `part` is 0, or 1 for "
        "the kernel's half where that has a root of its own (AArch64, Arm, MIPS). Where a guest starts without "
        "translation, its first whole address space begins it.",
    ),
    CallRow(Call.FLUSH_PAGE, ("address",), "Forget the translation of one page."),
    CallRow(Call.FLUSH_ALL, (), "Forget all translations."),
    CallRow(
        Call.TABLE_OPEN,
        ("table",),
        "Unhook the last-level table at a guest-physical address from the address spaces: the guest may write it as "
        "memory, and nothing is translated by it.",
    ),
    CallRow(Call.TABLE_CLOSE, ("table",), "Check the opened table as a whole and hook it in again."),
    CallRow(
        Call.PTE_READ,
        ("address", "count"),
        "Read `count` page-table entries: elements as PTE_UPDATE's, whose values are stored, each as the guest would "
        "have written it.",
        "entries read: all of them",
    ),
)
BY_NUMBER: Final[dict[int, CallRow]] = {int(row.call): row for row in CALLS}
