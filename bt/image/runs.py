"""Tables without a name in a raw image: the longest run of entries whose every field makes sense.

Room: `bt/image`. Which fields make sense is known to each instruction set's reader of patch tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Flags = NDArray[np.bool_]

FEWEST: Final = 8
"""Entries below which a run is no table."""


def longest_run(candidates: Flags, step: int) -> tuple[int, int]:
    """First word and number of entries of the longest run of candidates that are `step` words apart."""
    best = 0, 0
    for phase in range(step):
        flags = candidates[phase::step]
        edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
        if not len(edges):
            continue
        lengths = edges[1::2] - edges[::2]
        longest = int(np.argmax(lengths))
        if lengths[longest] > best[1]:
            best = int(edges[2 * longest]) * step + phase, int(lengths[longest])
    return best if best[1] >= FEWEST else (0, 0)
