"""What a comparison is: a named rule with what it leaves out and why, and what came of it.

Room: `bt/verify`. Values only; the comparing is in `checks`, the tables of rules in `profiles` and `bt.knowledge`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bt.image import Image
    from bt.verify.observation import Observation


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two runs where they part."""

    text: str
    """What it did, in one clause."""
    address: int | None = None
    """Guest-virtual address, where there is one."""
    symbol: str = ""
    """The same by the image's symbols."""
    disassembly: tuple[str, ...] = ()
    """The guest's own instructions from there on, each with its address and bytes."""
    registers: dict[str, int] = field(default_factory=dict)
    """General registers and status at that moment; empty where they are not known."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place at which two runs that must agree do not."""

    what: str
    """One sentence."""
    progress: int | None
    """Basic blocks that the rewritten run had executed; None where the end was compared."""
    reference: Side | None = None
    """None where the reference has nothing at this place."""
    rewritten: Side | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a check found."""

    compared: str
    """How much was compared, in one clause."""
    divergence: Divergence | None = None
    skipped: str = ""
    """Why nothing was compared; empty where something was."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs of one guest, and what is known of it."""

    image: Image
    reference: Observation
    rewritten: Observation
    delta: int = 0
    """Virtual relocation of both, bytes."""
    physical_delta: int = 0
    volatile: tuple[tuple[int, int], ...] = ()
    """Guest-physical (address, size) of what the guest itself declares to depend on time."""
    exit_calls: frozenset[int] = frozenset()
    """System calls by which a process ends, as the guest's manifest says."""
    waiting_calls: frozenset[int] = frozenset()
    """System calls by which a process lets others run while it waits, likewise."""
    initrd: bytes = b""
    command_line: str = ""

    @property
    def isa(self) -> str:
        """Name of the guest's instruction set."""
        return self.image.isa.name

    @property
    def order(self) -> str:
        """Byte order of the guest: "little" or "big"."""
        return self.image.byte_order

    def symbol(self, address: int) -> str:
        """Name of a guest-virtual address."""
        return self.image.symbols.name_at(address - self.delta) or f"{address:#x}"

    def address_of(self, name: str) -> int | None:
        """Guest-virtual address of a symbol."""
        linked = self.image.symbols.address_of(name)
        return None if linked is None else linked + self.delta

    def physical(self, address: int) -> int | None:
        """Guest-physical address at which a guest-virtual one of the image was loaded."""
        segment = self.image.segment_at(address - self.delta)
        if segment is None:
            return None
        return address - self.delta - segment.vaddr + segment.paddr + self.physical_delta

    def virtual(self, physical: int) -> int | None:
        """Guest-virtual address of a guest-physical one of the image."""
        for segment in self.image.segments:
            start = segment.paddr + self.physical_delta
            if start <= physical < start + segment.memory_size:
                return physical - start + segment.vaddr + self.delta
        return None


Check = Callable[[Pair], Result]


@dataclass(frozen=True, slots=True)
class Rule:
    """One comparison."""

    name: str
    compares: str
    """What must be the same."""
    leaves_out: str
    """What may differ; empty where nothing may."""
    why: str
    """The reason for which it may."""
    check: Check


@dataclass(frozen=True, slots=True)
class Profile:
    """The rules for a kind of guest."""

    name: str
    summary: str
    rules: tuple[Rule, ...]
    not_compared: tuple[tuple[str, str], ...]
    """What no rule looks at, and why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule and what came of it."""

    rule: Rule
    result: Result

    @property
    def passed(self) -> bool:
        """Whether the runs agree by this rule, or it had nothing to compare."""
        return self.result.divergence is None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A reference run and one rewritten run, compared by every rule of a profile."""

    profile: Profile
    pair: Pair
    findings: tuple[Finding, ...]

    @property
    def name(self) -> str:
        """Mode of the rewritten run, and its engine where that is not the reference's."""
        run = self.pair.rewritten
        return run.mode if run.engine == self.pair.reference.engine else f"{run.mode} on {run.engine}"

    @property
    def passed(self) -> bool:
        """Whether no rule found a divergence."""
        return all(finding.passed for finding in self.findings)

    @property
    def first(self) -> Finding | None:
        """The finding whose divergence came first in the rewritten run; those of the end come last."""
        failed = [finding for finding in self.findings if finding.result.divergence is not None]
        return min(failed, key=_moment, default=None)


def _moment(finding: Finding) -> tuple[float, bool]:
    """When, and at one moment first what says where."""
    divergence = finding.result.divergence
    assert divergence is not None
    side = divergence.rewritten or divergence.reference
    progress = float("inf") if divergence.progress is None else divergence.progress
    return progress, side is None or side.address is None


def compare(profile: Profile, pair: Pair) -> Comparison:
    """Apply every rule of `profile` to two runs."""
    return Comparison(profile, pair, tuple(Finding(rule, rule.check(pair)) for rule in profile.rules))


def rows(profile: Profile) -> Sequence[tuple[str, str, str, str]]:
    """The rules as a table: name, what is compared, what is left out, why."""
    return [(rule.name, rule.compares, rule.leaves_out or "nothing", rule.why) for rule in profile.rules]
