"""Vector registers of user code that the guest's kernel does not know of, kept apart by thread.

Room: `paravirt/modes/x86`. Where an engine cannot keep user code from AVX (`Capabilities.wide_vectors`), a kernel that
was shown a processor without it saves and restores SSE alone. A thread is known by its address space and FS base,
by which threads of one address space find what is their own; its state is put back before it runs again.
"""

from typing import Final, Protocol

MOST: Final = 4096
"""Threads whose state is kept; of more, the one that ran longest ago is forgotten."""
Thread = tuple[int, int]


class VectorEngine(Protocol):
    """What is needed of an engine."""

    def vectors(self) -> bytes: ...

    def set_vectors(self, state: bytes) -> None: ...


class Vectors:
    """The state of all threads but the one that runs."""

    def __init__(self, engine: VectorEngine) -> None:
        self._engine = engine
        self._current: Thread | None = None
        self._kept: dict[Thread, bytes] = {}

    def enter(self, thread: Thread) -> None:
        """A thread is about to run user code."""
        if thread == self._current:
            return
        kept = self._kept
        before = self._engine.vectors()
        if self._current is not None and before:
            kept[self._current] = before
            if len(kept) > MOST:
                del kept[next(iter(kept))]
        state = kept.pop(thread, b"")
        if state != before:
            self._engine.set_vectors(state)
        self._current = thread
