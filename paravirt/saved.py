"""What saved processors have in common: numbers that are read back must fit what they are put into.

Room: `paravirt`, under the hypervisors of `paravirt.modes`. A saved machine may come from a file that lies.
"""

from __future__ import annotations

from collections.abc import Iterable


def fits(bits: int, numbers: Iterable[int], what: str) -> None:
    """Raise `ValueError` for numbers of which one is negative, or has more than so many bits."""
    for number in numbers:
        if not 0 <= number < 1 << bits:
            raise ValueError(f"{what} cannot be {number:#x}: it has {bits} bits")


def one_of(values: Iterable[int], number: int, what: str) -> None:
    """Raise `ValueError` for a number that is none of some values."""
    if number not in values:
        raise ValueError(f"{what} cannot be {number}")
