"""What native callbacks keep back from the handler, and count: stores for later, answers given in a row.

Room: `emulator/engine/unicorn`. The words of control and the list of what is kept are shared with the machine code of
`ports` and `quiet`, each of which says what a kept word means.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import ClassVar, Final

KEPT: Final = 1024
"""Stores that are kept at most."""
MOST_ANSWERS: Final = 16
_PENDING, _ANSWERS = 1, 2


class Kept:
    """A `Keeper`; a subclass makes the words, and may use the first one of `control` for itself."""

    WHAT: ClassVar[str]
    """What is kept, in words."""
    control: memoryview
    """32 bits each. `control[1]`: words kept; `control[2]`: answers given in a row."""
    _kept: ctypes.Array[ctypes.c_uint32]

    def _take(self) -> list[int]:
        """The words kept, in order; none is kept afterwards."""
        count = self.control[_PENDING]
        self.control[_PENDING] = 0
        return self._kept[:count]

    @property
    def pending(self) -> tuple[int, ...]:
        """Answers given in a row, and the words kept: what `set_pending` takes."""
        return (self.control[_ANSWERS], *self._kept[: self.control[_PENDING]])

    def set_pending(self, pending: Sequence[int]) -> None:
        """Be where `pending` was. Raises `ValueError` for what it cannot have given."""
        answers, *kept = pending
        if not 0 <= answers <= MOST_ANSWERS or len(kept) > KEPT:
            raise ValueError(f"{answers} answers and {len(kept)} {self.WHAT} kept by an engine")
        self.control[_ANSWERS], self.control[_PENDING] = answers, len(kept)
        for place, word in enumerate(kept):
            self._kept[place] = word & 0xFFFF_FFFF
