"""One guest in one mode on two engines: exits by operation, side by side.

Room: `bt/verify`. That both runs behave as the reference is the rules' business; here is what a hypervisor did for
them. How often it acted for a timer, a miss of its own tables or a port depends on the engine; what a kernel does when
it sets its processor up does not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from bt.verify.observation import Observation

STEADY: Final = frozenset(
    {
        "READ_MODEL_SPECIFIC_REGISTER",
        "WRITE_DEBUG_REGISTER",
        "READ_DEBUG_REGISTER",
        "WRITE_DESCRIPTOR_TABLE",
        "READ_DESCRIPTOR_TABLE",
        "WRITE_SYSTEM_SELECTOR",
        "FAR_RETURN",
    }
)
"""Operations that a guest does as often on every engine."""


@dataclass(frozen=True, slots=True)
class Operations:
    """What two engines exited for."""

    mode: str
    engines: tuple[str, str]
    counts: tuple[tuple[str, int, int], ...]
    """Operation, and how often on either engine: all routes together."""

    @property
    def differing(self) -> tuple[str, ...]:
        """Steady operations that were not done as often."""
        return tuple(name for name, left, right in self.counts if name in STEADY and left != right)

    @property
    def passed(self) -> bool:
        """Whether the steady operations agree."""
        return not self.differing


def compare_operations(left: Observation, right: Observation) -> Operations:
    """Two runs of one guest in one mode."""
    counts = [_by_operation(run) for run in (left, right)]
    names = sorted(set(counts[0]) | set(counts[1]))
    return Operations(
        left.mode, (left.engine, right.engine), tuple((name, counts[0][name], counts[1][name]) for name in names)
    )


def _by_operation(run: Observation) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, count in run.exits.items():
        found[name.rpartition(" (")[0] or name] += count
    return found
