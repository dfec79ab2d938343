"""Two consoles of the same kernel, line by line: what differs, and which rule explains it.

Room: comparisons. One console is ours, the other an independent machine's (QEMU's). Time, wall clock and firmware are
never the same on two machines, so a *value* rule blanks such a part of a line, an *order* rule names lines that the
kernel prints from a thread of its own, and a *presence* rule names lines that one machine has a reason to lack.
Whatever no rule explains is unexplained, and the comparison fails.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class Effect(Enum):
    """What a rule excuses."""

    VALUE = "value"
    """A part of the line; the line itself must be on both consoles, at the same place."""
    ORDER = "order"
    """The place of the line; it must be on both consoles, as often."""
    PRESENCE = "presence"
    """The whole line: it may be on one console only."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One reason for which consoles of the same kernel may differ."""

    name: str
    effect: Effect
    patterns: tuple[re.Pattern[str], ...]
    """VALUE: every group is blanked where the pattern is found. ORDER and PRESENCE: found at the line's start."""
    why: str


class Side(Enum):
    """Which console has a differing line."""

    OURS = "ours"
    THEIRS = "theirs"
    MOVED = "both, at another place"


@dataclass(frozen=True, slots=True)
class Difference:
    """One line that is not the same on both consoles."""

    side: Side
    line: str
    """As it was printed, without its timestamp."""
    number: int
    """Line number on the console that has it (on ours, for a moved line), counted from 1 at the first kernel line."""
    explanation: str | None
    """Name of the rule that excuses it; None when it is unexplained."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two consoles have in common, and what not."""

    equal: int
    """Lines that are the same on both, after values were blanked."""
    blanked: dict[str, int]
    """Rule -> lines of ours in which it blanked something."""
    differences: tuple[Difference, ...]

    @property
    def unexplained(self) -> tuple[Difference, ...]:
        """The differences that no rule excuses."""
        return tuple(difference for difference in self.differences if difference.explanation is None)

    @property
    def passed(self) -> bool:
        """Whether both consoles have lines, and no difference is unexplained."""
        return self.equal > 0 and not self.unexplained

    def report(self) -> str:
        """Counts, then every difference on a line of its own, the unexplained ones last."""
        explained = Counter(difference.explanation for difference in self.differences if difference.explanation)
        lines = [f"{self.equal} lines are equal; {len(self.unexplained)} differences are unexplained"]
        lines += [f"  {count} by value: {name}" for name, count in sorted(self.blanked.items())]
        lines += [f"  {count} by line: {name}" for name, count in sorted(explained.items())]
        for difference in sorted(self.differences, key=lambda difference: difference.explanation is None):
            reason = difference.explanation or "UNEXPLAINED"
            lines.append(f"{difference.side.value} {difference.number}: {difference.line}  [{reason}]")
        return "\n".join(lines)


def _rule(name: str, effect: Effect, why: str, *patterns: str) -> Rule:
    return Rule(name, effect, tuple(map(re.compile, patterns)), why)


LINUX: tuple[Rule, ...] = (
    _rule(
        "wall clock",
        Effect.VALUE,
        "the clock chip shows another time",
        r"^audit: type=2000 audit\(([\d.]+):1\)",
        r"setting system clock to (\S+ UTC \(\d+\))",
    ),
    _rule(
        "rate of the clock",
        Effect.VALUE,
        "measured against the machine's own time",
        r"^tsc: Detected ([\d.]+) MHz",
        r"^CPU frequency ([\d.]+) MHz$",
        r"^node \d deferred pages initialised in (\d+)ms$",
        r"^clocksource: tsc(?:-early)?: mask: 0x\w+ max_cycles: (0x\w+), max_idle_ns: (\d+) ns",
        r"^sched_clock: Marking stable (\(.*\))",
        r"^Calibrating delay loop(.*)$",
        r"^smpboot: Total of 1 processors activated \(([\d.]+) BogoMIPS\)",
    ),
    _rule(
        "where things lie in memory",
        Effect.VALUE,
        "the boot loader and the firmware chose other places for initramfs and tables",
        r"^RAMDISK: \[mem (0x\w+-0x\w+)\]",
        r"^NODE_DATA\(0\) allocated \[mem (0x\w+-0x\w+)\]",
        r"^NUMA: NODE_DATA \[mem (0x\w+-0x\w+)\]",
        r"^Memory: (\d+K)/(\d+K) available .* (\d+K) reserved",
        r"^Built 1 zonelists, .* Total pages: (\d+)",
        r"^On node 0, zone DMA: (\d+) pages in unavailable ranges",
    ),
    _rule(
        "interrupt controllers",
        Effect.VALUE,
        "counted from the firmware's tables, which only one of the machines has",
        r"^NR_IRQS: \d+, nr_irqs: (\d+)",
    ),
    _rule(
        "caches",
        Effect.VALUE,
        "the processor shown to an ARMv7 guest has small ones, so that it maintains none by set and way",
        r"^CPU: PIPT / VIPT nonaliasing data cache, VIPT (\w+) instruction cache$",
    ),
    _rule(
        "clock chip",
        Effect.VALUE,
        "the models have a different number of spare bytes",
        r"^rtc_cmos rtc_cmos: alarms up to one day, (.* bytes nvram.*)$",
    ),
    _rule(
        "kernel threads",
        Effect.ORDER,
        "printed by a thread beside the boot, when its turn comes",
        r"audit: type=2000 audit\(",
        r"audit: initializing netlink subsys",
        r"Trying to unpack rootfs image as initramfs",
        r"Freeing initrd memory: ",
        r"workingset: ",
    ),
    _rule(
        "timers and clock sources",
        Effect.PRESENCE,
        "depends on the machine's timers and on how fast it is",
        r"tsc: ",
        r"clocksource: ",
        r"hpet",
        r"Calibrating delay loop",
        r"sched_clock: ",
        r"random: ",
        r"process: using .* idle routine",
        r"kvm-clock: ",
        r"rcu: .*(self-detected stall|kthread starved)",
        r"TSC found unstable after boot",
        r"(Unstable clock detected|If you want to keep using the local clock)",
        r"(  \"trace_clock=local\"|on the kernel command line)",
    ),
    _rule(
        "AArch32",
        Effect.PRESENCE,
        "the processor shown to an AArch64 guest runs AArch64 alone",
        r"CPU features: detected: 32-bit EL[01] Support",
        r"(Registered setend emulation handler|setend instruction emulation is not supported)",
    ),
    _rule(
        "devices of QEMU's virt",
        Effect.PRESENCE,
        "the board has serial port, interrupt controller and timer, and none of these",
        r"GICv2m: ",
        r"pl061_gpio ",
        r"rtc-pl031 ",
        r"hw perfevents: enabled with armv8_pmuv3 PMU driver",
    ),
    _rule(
        "memory map",
        Effect.PRESENCE,
        "the firmware, or the boot loader in its place, reports other reserved ranges",
        r"BIOS-e820: ",
        r"(extended physical RAM map:|reserve setup_data: )",
        r"PM: hibernation: Registered nosave memory: ",
        r"\[mem 0x\w+-0x\w+\] available for PCI devices",
        r"  node   0: \[mem ",
        r"Early memory node ranges$",
        r"On node 0, zone \w+: \d+ pages in unavailable ranges",
        r"e820: ",
        r"last_pfn = ",
        r"Initmem setup node 0 ",
        r"ACPI: PM: Registering ACPI NVS region",
        r"  (DMA|DMA32|Normal)\s+(\[mem|empty)",
    ),
    _rule(
        "firmware tables",
        Effect.PRESENCE,
        "SeaBIOS leaves DMI, MP and Plug-and-Play tables in memory, a direct boot has none",
        r"SMBIOS \d",
        r"DMI: ",
        r"DMI not present or invalid",
        r"found SMP MP-table at ",
        r"Intel MultiProcessor Specification ",
        r"MPTABLE: ",
        r"BIOS bug, MP table errors detected",
        r"Processor #\d",
        r"IOAPIC\[\d\]: ",
        r"Processors: \d",
        r"smpboot: Allowing \d CPUs",
        r"SFI: ",
        r"No (local APIC|SMP motherboard)",
        r"SMP motherboard not detected",
        r"smpboot: SMP (disabled|motherboard not detected)",
        r"APIC",
        r"AGP: ",
        r"CPU topo: ",
        r"(PnPBIOS: |PNPBIOS fault)",
    ),
    _rule(
        "processor",
        Effect.PRESENCE,
        "the hypervisor shows a processor with fewer features than QEMU's qemu64",
        r"x86/fpu: ",
        r"x86/PAT: ",
        r"x86/cpu: ",
        r"x86/split lock",
        r"CPU MTRRs all blank",
        r"(MTRR|Disabled$)",
        r"x2apic: ",
        r"NX \(Execute Disable\) protection: ",
        r"Last level [id]TLB entries: ",
        r"Spectre V\d",
        r"Speculative Store Bypass",
        r"MDS: |TAA: |MMIO Stale Data|SRBDS: |L1TF: |RETBleed|ITS: |Register File Data|GDS: |Meltdown",
        r"mce: ",
        r"CPU0: ",
        r"smpboot: CPU0: ",
        r"smpboot: (Max logical packages|weird)",
        r"Performance Events:",
        r"(no APIC, boot with|no hardware sampling interrupt|PMU not available|no MSR PMU driver)",
        r"intel_pstate: ",
        r"microcode: ",
        r"generic PMU driver|\.\.\. ",
        r"signal: max sigframe size",
        r"AMD-Vi: ",
        r"(Freeing unused decrypted memory)",
        r"IPI shorthand broadcast: ",
    ),
    _rule(
        "devices",
        Effect.PRESENCE,
        "the machines have other devices beside those of the board",
        r"PCI: ",
        r"pci",
        r"vgaarb: ",
        r"i8042: ",
        r"serio: ",
        r"input: ",
        r"mousedev: ",
        r"Console: ",
        r"platform rtc_cmos: ",
        r"rtc_cmos rtc_cmos: (registered|alarms)",
        r"ata_piix|ahci|scsi|sr \d|PIIX",
        r"piix4_smbus",
        r"Floppy",
    ),
)
"""The rules for Linux on a PC, found by comparing runs of the same kernel on QEMU with each other and with ours."""

_TIMESTAMP = re.compile(r"\[ *\d+\.\d{6}\] ")
_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|c)")


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    printed: str
    blanked: str
    rules: tuple[str, ...]


def kernel_lines(console: bytes) -> list[str]:
    """A console's lines from the kernel's first on: no timestamps, no terminal escapes, no empty lines.

    Consoles without timestamps are taken whole. A message that the kernel prints into the middle of a line
    from user space becomes a line of its own.
    """
    text = _ESCAPE.sub("", console.decode(errors="replace").replace("\r", ""))
    first = _TIMESTAMP.search(text)
    if first is not None:
        text = text[first.start() :]
    return [line.rstrip() for line in _TIMESTAMP.sub("\n", text).split("\n") if line.strip()]


def compare(ours: bytes, theirs: bytes, rules: Sequence[Rule] = LINUX) -> Comparison:
    """Compare two consoles of the same kernel, initramfs and command line, printed to the same point."""
    left, right = (_blank(kernel_lines(console), rules) for console in (ours, theirs))
    free_left, fixed_left = _split(left, rules)
    free_right, fixed_right = _split(right, rules)
    equal, only_ours, only_theirs = _align(fixed_left, fixed_right)
    lacking = _lacking(free_left, free_right)
    equal += len(free_left) - sum(difference.side is Side.OURS for difference in lacking)
    differences = [*_explain(only_ours, only_theirs, rules), *lacking]
    blanked = Counter(name for line in left for name in line.rules)
    return Comparison(equal, dict(blanked), tuple(differences))


def _split(lines: Sequence[_Line], rules: Sequence[Rule]) -> tuple[list[_Line], list[_Line]]:
    """Lines whose place is free, and the others."""
    free = [line for line in lines if _reason(line, rules, Effect.ORDER)]
    return free, [line for line in lines if line not in free]


def _align(left: Sequence[_Line], right: Sequence[_Line]) -> tuple[int, list[_Line], list[_Line]]:
    """How many lines are equal and in order, and the lines of either side that are not."""
    matcher = difflib.SequenceMatcher(
        None, [line.blanked for line in left], [line.blanked for line in right], autojunk=False
    )
    only_left: list[_Line] = []
    only_right: list[_Line] = []
    equal = 0
    for tag, from_left, to_left, from_right, to_right in matcher.get_opcodes():
        if tag == "equal":
            equal += to_left - from_left
        else:
            only_left += left[from_left:to_left]
            only_right += right[from_right:to_right]
    return equal, only_left, only_right


def _lacking(ours: Sequence[_Line], theirs: Sequence[_Line]) -> list[Difference]:
    """Lines whose place is free, but which one console has more often than the other: never excused."""
    found = []
    for side, mine, others in ((Side.OURS, ours, theirs), (Side.THEIRS, theirs, ours)):
        left_over = Counter(line.blanked for line in others)
        for line in mine:
            left_over[line.blanked] -= 1
            if left_over[line.blanked] < 0:
                found.append(Difference(side, line.printed, line.number, None))
    return found


def _blank(lines: Iterable[str], rules: Sequence[Rule]) -> list[_Line]:
    values = [rule for rule in rules if rule.effect is Effect.VALUE]
    found = []
    for number, printed in enumerate(lines, start=1):
        blanked, names = printed, []
        for rule in values:
            for pattern in rule.patterns:
                if match := pattern.search(blanked):
                    names.append(rule.name)
                    for group in range(match.re.groups, 0, -1):
                        blanked = blanked[: match.start(group)] + "*" + blanked[match.end(group) :]
        found.append(_Line(number, printed, blanked, tuple(names)))
    return found


def _explain(ours: list[_Line], theirs: list[_Line], rules: Sequence[Rule]) -> Iterable[Difference]:
    """Pair lines that only moved, then look for a rule for each one left."""
    waiting: dict[str, list[_Line]] = {}
    for line in theirs:
        waiting.setdefault(line.blanked, []).append(line)
    for line in ours:
        if waiting.get(line.blanked):
            waiting[line.blanked].pop(0)
            # What may be lacking altogether may as well come later.
            yield Difference(Side.MOVED, line.printed, line.number, _reason(line, rules, Effect.PRESENCE))
        else:
            yield Difference(Side.OURS, line.printed, line.number, _reason(line, rules, Effect.PRESENCE))
    left_over = (line for lines in waiting.values() for line in lines)
    for line in sorted(left_over, key=lambda line: line.number):
        yield Difference(Side.THEIRS, line.printed, line.number, _reason(line, rules, Effect.PRESENCE))


def _reason(line: _Line, rules: Sequence[Rule], effect: Effect) -> str | None:
    for rule in rules:
        if rule.effect is effect and any(pattern.match(line.printed) for pattern in rule.patterns):
            return rule.name
    return None
