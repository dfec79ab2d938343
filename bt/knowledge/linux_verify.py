"""What of two runs of one Linux is the same, and what depends on when its timer ticked.

Room: `bt/knowledge`. Read by `bt.verify`. Addresses come from the kernel's own symbols (include/asm-generic/
sections.h names the section bounds); where a name is not there, its comparison is skipped and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from bt.console_compare import LINUX as CONSOLE_RULES
from bt.console_compare import compare as compare_consoles
from bt.verify import checks, devices
from bt.verify.checks import system_call
from bt.verify.rules import Divergence, Pair, Profile, Result, Rule, Side

if TYPE_CHECKING:
    from bt.verify.observation import Event

_PAGE: Final = 4096
_BP, _GP, _PF = 3, 13, 14
_NOP: Final = b"\x90"
_PROTECTION: Final = 1
"""Of a page fault's error code: the page was there (SDM 3A, 4.7)."""


@dataclass(frozen=True, slots=True)
class _Calls:
    """Numbers of system calls."""

    signal_returns: tuple[int, ...]
    """rt_sigreturn, sigreturn."""
    waits: tuple[int, ...]
    """wait4, waitpid."""
    exits: tuple[int, ...]
    """exit, exit_group, execve."""


_CALLS: Final = {
    ("x86-64", 64): _Calls((15,), (61,), (60, 231, 59)),
    ("x86-64", 32): _Calls((173, 119), (114, 7), (1, 252, 11)),
    ("i386", 32): _Calls((173, 119), (114, 7), (1, 252, 11)),
    ("aarch64", 64): _Calls((139,), (260,), (93, 94, 221)),
    ("armv7", 32): _Calls((173, 119), (114, 7), (1, 248, 11)),
    ("armv7", 16): _Calls((173, 119), (114, 7), (1, 248, 11)),
    ("mips32", 32): _Calls((4193, 4119), (4114, 4007), (4001, 4246, 4011)),
}
"""By instruction set and `Event.bits` (arch/x86/entry/syscalls/syscall_64.tbl and syscall_32.tbl,
include/uapi/asm-generic/unistd.h, arch/arm/tools/syscall.tbl, arch/mips/kernel/syscalls/syscall_o32.tbl)."""
_RDMSR, _WRMSR = b"\x0f\x32", b"\x0f\x30"
FIXED: Final = "norandmaps"
"""The kernel parameter that keeps the addresses of processes the same (Documentation/admin-guide)."""
_MAGIC: Final = b"070701"
_HEADER: Final = 110
_REGULAR, _TYPE = 0o100000, 0o170000
_MOST_MEMBERS: Final = 100_000

_PROCESSOR: Final = frozenset(
    {
        *("CPL", "CR0", "CR4", "EFER", "STAR", "LSTAR", "CSTAR", "FMASK"),
        *("GDTR.base", "GDTR.limit", "IDTR.base", "IDTR.limit"),
        *(
            f"{name}.{part}"
            for name in ("CS", "SS", "DS", "ES", "LDTR", "TR")
            for part in ("selector", "base", "limit")
        ),
    }
)


def _console(pair: Pair) -> Result:
    """The consoles by the documented rules, none of which excuses a lost line."""
    comparison = compare_consoles(pair.rewritten.console, pair.reference.console, CONSOLE_RULES)
    excused = len(comparison.differences) - len(comparison.unexplained)
    text = f"{comparison.equal} lines are equal, {excused} differ by a rule"
    if comparison.passed:
        return Result(text)
    if not comparison.unexplained:
        return Result(text, Divergence("neither console has a line", None))
    first = min(comparison.unexplained, key=lambda difference: difference.number)
    side = Side(f"{first.side.value}, line {first.number}: {first.line}")
    ours = first.side.value != "theirs"
    what = f"{len(comparison.unexplained)} lines differ and no rule says why"
    at = checks.printed(pair.rewritten, pair.rewritten.console.find(first.line.encode())) if ours else None
    return Result(text, Divergence(what, at, None if ours else side, side if ours else None))


def key(pair: Pair, event: Event) -> tuple[int, ...]:
    """Number, error, address and what a page fault accessed; of a moved user program the addresses within a page."""
    fixed = event.level == 0 or FIXED in pair.command_line.split()
    mask = -1 if fixed else 0xFFF
    return event.number, system_call(event), event.error, event.rip & mask, event.address & mask


def _kept(pair: Pair, event: Event) -> bool:
    if event.number == _GP and event.level == 0:
        return event.code[:2] not in (_RDMSR, _WRMSR)
    return event.number != _PF or (not event.error & _PROTECTION and FIXED in pair.command_line.split())


def asked_once(calls: list[Event]) -> list[Event]:
    """A process's system calls without returns from signal handlers, and without waits that are asked again."""
    kept: list[Event] = []
    for call in calls:
        known = _CALLS[call.isa, call.bits]
        again = (
            kept
            and system_call(call) in known.waits
            and (system_call(kept[-1]), kept[-1].rip) == (system_call(call), call.rip)
        )
        if system_call(call) not in known.signal_returns and not again:
            kept.append(call)
    return kept


def ends_process(_pair: Pair, event: Event) -> bool:
    """Whether the process leaves its address space behind it, whose root another process may get."""
    return system_call(event) in _CALLS[event.isa, event.bits].exits


def text_range(pair: Pair) -> list[tuple[int, int]]:
    # Without data symbols in kallsyms _text is not there where it is not in the section of code.
    return _between(pair, "_text", "_etext") or _between(pair, "_stext", "_etext")


def _not_own_breakpoint(_pair: Pair, event: Event) -> bool:
    return not (event.number == _BP and event.level == 0)


def _short_nops(pair: Pair, _at: int, reference: bytes, rewritten: bytes) -> int:
    """How many bytes are one long NOP in the reference and short ones in the other run."""
    if pair.rewritten.reads_own_code:
        return 0
    from iced_x86 import Code, Decoder

    instruction = Decoder(64, reference).decode()
    long_nops = (Code.NOP_RM16, Code.NOP_RM32, Code.NOP_RM64, Code.NOPD, Code.NOPW, Code.NOPQ)
    size = len(instruction)
    return size if instruction.code in long_nops and rewritten[:size] == _NOP * size else 0


def _read_only(pair: Pair) -> list[tuple[int, int]]:
    """.rodata without what is read-only only after the kernel has set it."""
    whole = _between(pair, "__start_rodata", "__end_rodata")
    late = _between(pair, "__start_ro_after_init", "__end_ro_after_init")
    if not whole or not late or not whole[0][0] <= late[0][0] <= late[0][1] <= whole[0][1]:
        return [] if late == [] else whole
    return [(whole[0][0], late[0][0]), (late[0][1], whole[0][1])]


def _between(pair: Pair, start: str, end: str) -> list[tuple[int, int]]:
    low, high = pair.address_of(start), pair.address_of(end)
    return [(low, high)] if low is not None and high is not None and low < high else []


def _files(pair: Pair) -> Result:
    """Each page of each file of the initramfs lies somewhere in memory at the end of both runs."""
    files = dict(members(pair.initrd))
    pages = [(name, page) for name, data in files.items() for page in _pages(data)]
    if not pages:
        return Result("", skipped="there is no initramfs, or it is compressed")
    text = f"{len(pages)} pages of {len(files)} files"
    wanted = [page for _, page in pages]
    lost = [set(checks.holds(run.memory, wanted)) for run in (pair.reference, pair.rewritten)]
    # A page that the reference has lost as well was written to, or freed.
    only = sorted(lost[1] - lost[0])
    if not only:
        return Result(f"{text}, of which {len(lost[0])} are in neither memory")
    name = pages[only[0]][0]
    what = f"{len(only)} pages of the initramfs are in the reference's memory only, the first of {name}"
    return Result(text, Divergence(what, None))


def _pages(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), _PAGE):
        yield data[at : at + _PAGE].ljust(_PAGE, b"\0")


def members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and contents of the regular files of a newc archive; it ends where the archive is damaged."""
    at = 0
    for _ in range(_MOST_MEMBERS):
        header = archive[at : at + _HEADER]
        if len(header) < _HEADER or header[:6] != _MAGIC:
            return
        try:
            fields = [int(header[start : start + 8], 16) for start in range(6, _HEADER, 8)]
        except ValueError:
            return
        mode, size, name_size = fields[1], fields[6], fields[11]
        start = at + _HEADER
        name = archive[start : start + max(name_size - 1, 0)].decode(errors="replace")
        data_at = (start + name_size + 3) & ~3
        if name == "TRAILER!!!" or data_at + size > len(archive):
            return
        if mode & _TYPE == _REGULAR:
            yield name, archive[data_at : data_at + size]
        at = (data_at + size + 3) & ~3


_TICKS: Final = "the timer ticks at other instructions, and what the kernel does next depends on it"

REDUCTIONS: Final[dict[str, checks.Reduce]] = {
    "com1": devices.serial_setup,
    "pic-master": devices.interrupt_controller_setup,
    "pic-slave": devices.interrupt_controller_setup,
    "pit": devices.timer,
    "rtc": devices.clock_chip,
}

LINUX: Final = Profile(
    "linux",
    "a Linux on x86-64, whose course depends on when its timer ticks",
    (
        Rule("outcome", "how the run ended, and with which status", "", "nothing may differ", checks.outcome),
        Rule(
            "console",
            "every line, by the rules of console-rules.md",
            "readings of clocks, and the place of lines that threads of their own print",
            _TICKS,
            _console,
        ),
        Rule(
            "device writes",
            "per device, the sequence of (offset, size, value): timer, clock chip, POST port, reset and power",
            "characters and interrupt enables of the serial port, interrupt controllers once they are set up, "
            "latches of the timer's count, indices of clock registers that are only read",
            "characters are the console's, whose lines are compared; an interrupt is masked and ended at each tick; a "
            "clock is read until it is not just changing",
            checks.device_writes(REDUCTIONS),
        ),
        Rule(
            "system calls",
            "per process, the sequence of (number, address)",
            "which process comes when; returns from signal handlers, and a wait asked again after one; of a program "
            "at a random address, all but the address within its page",
            "processes are scheduled by the timer, and a signal comes before or in the wait for the process that "
            "ended; the kernel's random numbers come from the time-stamp counter",
            checks.events("system call", key=key, last=ends_process, reduce=asked_once),
        ),
        Rule(
            "software interrupts",
            "per process, the sequence of (vector, address), and the number of INT 0x80's system call",
            "which process comes when; of system calls what is left out above; the kernel's own INT3",
            "processes are scheduled by the timer; it also ticks while the kernel has put INT3 where it patches itself",
            checks.events("software interrupt", _not_own_breakpoint, key, ends_process, asked_once),
        ),
        Rule(
            "exceptions",
            "per process, the sequence of (vector, error code, address)",
            "#GP of RDMSR and WRMSR; page faults on pages that are there; all page faults, unless the command line "
            f"says {FIXED}",
            "the engine has no MSR that faults, so the reference reads 0 where a processor raises #GP, and Linux goes "
            "on alike; after a fork the first to write copies the page, be it parent, child, or the kernel when it "
            "preempts one (restartable sequences); where stack and heap lie is random, and so which pages are touched",
            checks.events("exception", _kept, key, ends_process),
        ),
        Rule("interrupts", "which vectors came", "how often, and where", _TICKS, checks.vectors),
        Rule(
            "kernel text",
            "every byte from _text to _etext at the end, as the kernel has patched itself",
            "long NOPs, on an engine without execute-only pages",
            "nothing else may differ: the guest's frames stay pristine, and what is patched before the start is what "
            "Linux patches itself; where it reads a fixup's jump in place of NOPs that it would join, it leaves them",
            checks.ranges(text_range, _short_nops),
        ),
        Rule(
            "read-only data",
            "every byte from __start_rodata to __end_rodata at the end",
            "from __start_ro_after_init to __end_ro_after_init",
            "these are written by the kernel while it starts: addresses of what it allocated",
            checks.ranges(_read_only),
        ),
        Rule(
            "initramfs",
            "each page of each of its files is somewhere in memory at the end",
            "where, and pages that the reference has no more either",
            "pages are allocated in the order in which they are wanted",
            _files,
        ),
        Rule(
            "processor",
            "control, descriptor-table and system-call registers, and segments at the end",
            "general registers, RIP, RFLAGS, CR2 and CR3, FS and GS",
            "they are those of the moment and the process in which the run ended",
            checks.processor(_PROCESSOR.__contains__),
        ),
    ),
    (
        ("other memory", "stacks, heaps, page tables, time and counters: allocated and filled in another order"),
        ("kernel data and bss", "jiffies, clocks, lists of what was allocated, and pv_ops' three patched words"),
        ("moments, and how often the timer ticked", "virtual time is counted in blocks, which fixups have more of"),
        ("reads from devices", "their effects are compared: console, writes, what user space does"),
        (
            "what a system call is given and gives",
            "pointers and times are in it; that the next call is the same is not",
        ),
    ),
)
"""The rules for Linux."""


def _of_32_bits(rule: Rule) -> Rule:
    if rule.name != "device writes":
        return rule
    return replace(
        rule,
        compares="per device, the sequence of (offset, size, value): timer, clock chip, reset and power",
        leaves_out=f"{rule.leaves_out}; the POST port",
        why=f"{rule.why}; port 0x80 is written to wait after each access to the timer, with whatever is in AL",
        check=checks.device_writes({**REDUCTIONS, "post": devices.left_out}),
    )


LINUX_32: Final = replace(
    LINUX,
    name="linux-32",
    summary="a Linux on IA-32, whose course depends on when its timer ticks",
    rules=tuple(map(_of_32_bits, LINUX.rules)),
)
"""The rules for Linux on IA-32."""
