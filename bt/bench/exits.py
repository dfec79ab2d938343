"""What one exit costs: loops of a single sensitive instruction under the hypervisor, in trap mode.

Room: measurements. Each loop is a guest of its own, a few bytes long, that runs at 64-bit entry state and ends by the
debug exit. The cost of an exit is the loop's time less that of the same loop with the instruction left out,
divided by the exits counted; CPU time of this process, best of several runs.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

from emulator.board.boot import BootImage, LoadSegment

LOAD_ADDRESS = 0x100_0000
MEMORY = 64 << 20
HOST_SECONDS = 120.0
"""After this a loop is given up."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop around one sensitive instruction."""

    name: str
    body: bytes
    """Machine code; may use RAX and RDX."""
    trivial: bool = False
    """Whether its handler does next to nothing: the cost is the way to the handler and back."""


LOOPS: tuple[Loop, ...] = (
    Loop("cli", b"\xfa", trivial=True),
    Loop("sti", b"\xfb"),
    Loop("pushf; pop rax", b"\x9c\x58"),
    Loop("mov rax, cr0", b"\x0f\x20\xc0"),
    Loop("mov eax, cs", b"\x8c\xc8"),
    Loop("in al, 0x61", b"\xe4\x61"),
    Loop("out 0x61, al", b"\xe6\x61"),
    Loop("rdtsc", b"\x0f\x31"),
    Loop("cpuid", b"\x53\x51\x31\xc0\x0f\xa2\x59\x5b"),
)
_EMPTY = Loop("empty", b"")


@dataclass(frozen=True, slots=True)
class Cost:
    """The measured cost of one loop's exits."""

    loop: Loop
    exits: int
    """Exits a run, those of the empty loop taken off."""
    microseconds: float
    """Each."""


def program(loop: Loop, times: int) -> bytes:
    """Machine code: the loop, `times` over, then a write of 0 to the debug exit register."""
    head = b"\xb9" + struct.pack("<I", times)  # mov ecx, times
    body = loop.body + b"\xff\xc9"  # dec ecx
    back = b"\x75" + struct.pack("<b", -len(body) - 2)  # jnz
    return head + body + back + b"\x31\xc0\xe7\xf4\xf4"  # xor eax, eax; out 0xf4, eax; hlt


def measure(times: int = 100_000, runs: int = 3) -> Iterator[Cost]:
    """Measure every loop, the best of `runs`, with `times` rounds each."""
    empty_seconds, empty_exits = _best(_EMPTY, times, runs)
    for loop in LOOPS:
        seconds, exits = _best(loop, times, runs)
        exits -= empty_exits
        yield Cost(loop, exits, (seconds - empty_seconds) / max(1, exits) * 1e6)


def _best(loop: Loop, times: int, runs: int) -> tuple[float, int]:
    results = [_run(loop, times) for _ in range(runs)]
    return min(seconds for seconds, _ in results), results[0][1]


def _run(loop: Loop, times: int) -> tuple[float, int]:
    """CPU seconds and exits of one run. Raises RuntimeError when the guest does not end by itself."""
    from bt.loadtime import LoadTimeTranslator
    from emulator.machine import EndKind, Limits, Machine
    from paravirt.modes.x86.hypervisor import X86Hypervisor

    code = program(loop, times)
    image = BootImage((LoadSegment(LOAD_ADDRESS, code, 4096),), LOAD_ADDRESS)
    machine = Machine(MEMORY, lambda _: None, limits=Limits(host_seconds=HOST_SECONDS))
    try:
        hypervisor = X86Hypervisor(machine, LoadTimeTranslator("trap"))
        hypervisor.enter(machine.place(image))
        started = time.process_time()
        outcome = hypervisor.run()
        seconds = time.process_time() - started
        if outcome.kind is not EndKind.DEBUG_EXIT:
            raise RuntimeError(f"the loop of {loop.name} ended by {outcome.kind.value} ({outcome.detail})")
        return seconds, hypervisor.exits.total
    finally:
        machine.close()
