"""Stopping Unicorn at an exact progress and watching what it executes, without changing what it does.

Room: `emulator/engine/unicorn`. A stop comes at the beginning of a block that was counted already: the count is taken
back, and the block counts when it begins again. Hooks are part of translated code, so that goes when they change.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from emulator.engine.pausing import Progress
from emulator.engine.unicorn import library as lib

FOREVER = 1 << 62
"""A progress that no guest reaches."""
_WIDEST = 64
"""Bytes of the widest access."""
# Called as callback(engine, address, size, words); `words`: where to look, what was there, which bits, whom to call.
#   mov rax, [rcx] ; mov rax, [rax] ; xor rax, [rcx+8] ; and rax, [rcx+16] ; jnz changed ; ret ; changed: jmp [rcx+24]
_LOOK = bytes.fromhex("488b01 488b00 48334108 48234110 7501 c3 ff6118")
# Called likewise, with one word: inc qword [rcx] ; ret
_COUNT = bytes.fromhex("48ff01 c3")


class WordWatch:
    """Up to eight bytes of memory that native code looks at."""

    def __init__(self, memory: memoryview, seen: Callable[[], None], fail: Callable[[BaseException], None]) -> None:
        """`memory` are the bytes; what lies behind them on the host can be read."""
        if not 1 <= memory.nbytes <= 8:
            raise ValueError(f"{memory.nbytes} bytes cannot be looked at: give up to 8")
        self._memory = memory

        def changed(_engine: int, _address: int, _size: int, _user: int) -> None:
            try:
                self._words[1] = self._value()
                seen()
            except BaseException as error:
                fail(error)

        self._python = lib.CodeCallback(changed)
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(_LOOK)
        self.callback = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self._page)))
        self._words = (ctypes.c_uint64 * 4)(
            ctypes.addressof(ctypes.c_char.from_buffer(memory)),
            self._value(),
            (1 << 8 * memory.nbytes) - 1,
            ctypes.cast(self._python, ctypes.c_void_p).value or 0,
        )
        self.argument = ctypes.addressof(self._words)

    def _value(self) -> int:
        return int.from_bytes(self._memory, "little")


class InstructionCount:
    """A word that native code counts up at every instruction."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(_COUNT)
        self.callback = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self._page)))
        self.word = ctypes.c_uint64()
        self.argument = ctypes.addressof(self.word)


class Watched:
    """Of an engine, what `emulator.engine.pausing.WatchingEngine` asks for."""

    library: Any
    handle: int | None
    _remaining: memoryview
    _watches: dict[int, Any]

    def _fail(self, error: BaseException) -> None:
        raise NotImplementedError

    def count_again(self) -> None:
        """The block under way was left in its midst, and counts when it is begun again from there."""
        self._remaining[0] += 1

    def observe_code(self, first: int, last: int, seen: Callable[[int], None]) -> int:
        """Call `seen` before every instruction at guest-virtual `first`..`last`."""

        def on_code(_engine: int, address: int, _size: int, _user: int) -> None:
            try:
                seen(address)
            except BaseException as error:
                self._fail(error)

        return self._observe(lib.HOOK_CODE, lib.CodeCallback(on_code), first, last)

    def count_instructions(self) -> Callable[[], int]:
        """From now on count instructions that are begun, those of fixups too; gives what tells how many were."""
        count = InstructionCount()
        self._observe(lib.HOOK_CODE, count.callback, 1, 0, count.argument, count)
        return lambda: int(count.word.value)

    def observe_change(self, memory: memoryview, seen: Callable[[], None], *, exactly: bool = False) -> int:
        """Call `seen` when a block (or `exactly`: an instruction) begins and a word is no longer what it was: native
        code looks at it."""
        watch = WordWatch(memory, seen, self._fail)
        kind = lib.HOOK_CODE if exactly else lib.HOOK_BLOCK
        return self._observe(kind, watch.callback, 1, 0, watch.argument, watch)

    def observe_access(
        self, address: int, size: int, seen: Callable[[], None], *, reads: bool, writes: bool
    ) -> tuple[int, int]:
        """Call `seen` before the instruction behind one that accesses engine-physical memory at `address`."""
        word = memoryview(bytearray(16))
        last = address + size - 1

        def on_access(_engine: int, _kind: int, at: int, width: int, _value: int, _user: int) -> int:
            if at <= last and address < at + width:
                word[0] = word[0] + 1 & 0xFF
            return 0

        kind = (lib.HOOK_MEM_READ if reads else 0) | (lib.HOOK_MEM_WRITE if writes else 0)
        first = max(0, address - _WIDEST + 1)
        access = self._observe(kind, lib.MemoryCallback(on_access), first, last)
        return access, self.observe_change(word[:8], seen, exactly=True)

    def unobserve(self, number: int) -> None:
        """Observe no more."""
        if self._watches.pop(number, None) is not None:
            self.library.uc_hook_del(ctypes.c_void_p(self.handle), ctypes.c_size_t(number))
            self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_CODE)

    def _observe(self, kind: int, callback: Any, first: int, last: int, argument: int = 0, keep: object = None) -> int:
        number = ctypes.c_size_t()
        self.library.uc_hook_add(
            ctypes.c_void_p(self.handle),
            ctypes.byref(number),
            ctypes.c_int(kind),
            callback,
            ctypes.c_void_p(argument),
            ctypes.c_uint64(first),
            ctypes.c_uint64(last),
            ctypes.c_int(0),
        )
        self._watches[number.value] = keep or callback
        self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_CODE)
        return number.value


class Keeper(Protocol):
    """Native code that keeps something back from the handler."""

    @property
    def pending(self) -> tuple[int, ...]:
        """What is kept, and counted, as plain numbers."""
        ...

    def set_pending(self, pending: Sequence[int]) -> None:
        """Be where `pending` was. Raises `ValueError` for what it cannot have given."""
        ...


class Observed(Watched):
    """Of an engine, what `emulator.engine.pausing` asks for."""

    _deadline: int
    """Progress at which the block counter stops the engine: the least of the two below."""
    _limit: memoryview
    """The same for native code, in its first word."""
    _wanted: int
    """The deadline that the driver has asked for."""
    _pause: int
    _paused_call: Callable[[], None]
    _keeper: Keeper | None = None

    def set_deadline(self, progress: int) -> None:
        """Ask for a BUDGET exit when `progress` blocks are reached; the past means: at the next block."""
        now = self._deadline - self._remaining[0]
        if progress <= now:
            progress = now + 1
        self._wanted = progress
        if progress > self._pause:
            progress = self._pause
        self._remaining[0] = progress - now
        self._deadline = self._limit[0] = progress

    @property
    def progress(self) -> int:
        """Basic blocks begun since the engine was opened."""
        return self._deadline - self._remaining[0]

    def pause_at(self, progress: int | None, paused: Callable[[], None] = lambda: None) -> None:
        """Call `paused` once so many blocks are done, when the next one is about to begin; None: not any more."""
        now = self._deadline - self._remaining[0]
        self._paused_call = paused
        self._pause = FOREVER if progress is None else max(progress, now) + 1
        self._deadline = self._limit[0] = min(self._wanted, self._pause)
        self._remaining[0] = self._deadline - now

    def _paused(self) -> None:
        """The block counter has stopped the engine for a pause: the block that it counted last was not begun."""
        self._remaining[0] += 1
        self.pause_at(None, self._paused_call)
        self._paused_call()

    @property
    def progress_state(self) -> Progress:
        """Blocks begun, and the deadline asked for."""
        return Progress(self._deadline - self._remaining[0], self._wanted)

    def set_progress(self, state: Progress) -> None:
        """Count on from another progress, to another deadline; a pause that was asked for is forgotten."""
        self._wanted = self._deadline = self._limit[0] = max(state.wanted, state.done)
        self._pause = FOREVER
        self._remaining[0] = self._wanted - state.done

    @property
    def pending(self) -> tuple[int, ...]:
        """What native code keeps back; nothing where there is none that does."""
        return () if self._keeper is None else self._keeper.pending

    def set_pending(self, pending: Sequence[int]) -> None:
        """Be where `pending` was."""
        if pending and self._keeper is not None:
            self._keeper.set_pending(pending)
