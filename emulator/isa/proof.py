"""The result of running a table's rows live, in one form for every instruction set.

Room: `emulator/isa`. Each instruction set's own `proof` module runs its rows on an engine and says what it saw.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol, TypeVar

from emulator.isa.sensitive import SensitiveInstruction


class Verdict(Enum):
    """What running a row's cases showed."""

    PROVEN = "proven"
    """Both modes did what the manual says."""
    DEPARTS = "departs"
    """At least one run did what `DEPARTURES` says of this engine instead."""
    ABSENT = "absent"
    """The processor lacks the extension and answered as the manual says it must."""
    REFUTED = "refuted"
    """A run did neither, or did what the manual says although a departure is listed."""


class Proof(NamedTuple):
    """The result for one row."""

    row: SensitiveInstruction
    verdict: Verdict
    kernel: str
    """What the example did in kernel mode."""
    user: str
    """What it did in user mode."""
    remarks: tuple[str, ...]
    """Reasons of departures, or what refutes the row."""


class Claimed(Protocol):
    """What must be seen: an event, and values by name."""

    @property
    def event(self) -> object:
        """How the instruction must end; printed in reports."""
        ...

    @property
    def shows(self) -> Mapping[str, int]:
        """Values afterwards."""
        ...


class Departed(Claimed, Protocol):
    """What is seen of an engine that does otherwise than the manual says."""

    @property
    def reason(self) -> str:
        """Why, in a clause."""
        ...


class Tried(Protocol):
    """A case: what the manual claims of it in both modes."""

    @property
    def kernel(self) -> Claimed:
        """In kernel mode."""
        ...

    @property
    def user(self) -> Claimed:
        """In user mode."""
        ...

    @property
    def absent(self) -> bool:
        """Whether the engine's processor lacks the extension."""
        ...


class Seen(NamedTuple):
    """What was seen of a run."""

    event: object
    value: Callable[[str], int]
    """A value by its name."""


_Case = TypeVar("_Case", bound=Tried)
_Mode = TypeVar("_Mode")


def judge(
    row: SensitiveInstruction,
    cases: Sequence[_Case],
    departures: Mapping[tuple[str, _Mode, int], Departed],
    modes: tuple[tuple[_Mode, str], tuple[_Mode, str]],
    execute: Callable[[_Case, _Mode, tuple[str, ...]], Seen],
) -> Proof:
    """Run all cases of a row in both modes, and hold what is seen against the manual and the departures.

    `modes` are the kernel's and the user's, each with its name for remarks; `departures` are by row name, mode and
    number of the case; `execute` is also told the names of the values that will be asked for.
    """
    verdict = Verdict.ABSENT if all(case.absent for case in cases) else Verdict.PROVEN
    remarks: list[str] = []
    shown: list[str] = []
    for number, case in enumerate(cases):
        for (mode, name), claim in zip(modes, (case.kernel, case.user), strict=True):
            departure = departures.get((row.name, mode, number))
            seen = execute(case, mode, (*claim.shows, *(departure.shows if departure else ())))
            shown.append(_describe(seen, claim))
            against = _difference(seen, claim)
            where = name + (f", case {number + 1} of {len(cases)}" if len(cases) > 1 else "")
            if departure is None:
                if against:
                    verdict = Verdict.REFUTED
                    remarks.append(f"{where}: {against}")
                continue
            stray = _difference(seen, departure)
            if not against:
                verdict = Verdict.REFUTED
                remarks.append(f"{where}: does what the manual says, but a departure is listed: {departure.reason}")
            elif stray:
                verdict = Verdict.REFUTED
                remarks.append(f"{where}: departs otherwise than listed: {stray}")
            else:
                verdict = verdict if verdict is Verdict.REFUTED else Verdict.DEPARTS
                remarks.append(f"{where}: {departure.reason}")
    return Proof(row, verdict, shown[0], shown[1], tuple(dict.fromkeys(remarks)))


def _describe(seen: Seen, claim: Claimed) -> str:
    """What was seen in words, with the values that the claim is about."""
    values = ", ".join(f"{name} = {seen.value(name):#x}" for name in claim.shows)
    return f"{seen.event}: {values}" if values and seen.event == claim.event else str(seen.event)


def _difference(seen: Seen, claim: Claimed) -> str:
    """What is not as claimed; empty when all is."""
    if seen.event != claim.event:
        return f"saw {seen.event} instead of {claim.event}"
    for name, expected in claim.shows.items():
        if seen.value(name) != expected:
            return f"{name} is {seen.value(name):#x} instead of {expected:#x}"
    return ""
