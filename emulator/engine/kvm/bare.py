"""KVM_RUN without an engine around it: what an exit costs that nobody looks at, as the measure for the engine's own.

Room: `emulator/engine/kvm`, measurements. Both take the same trap from level 3 again and again, in turns.
"""

import fcntl
import time
from itertools import pairwise
from typing import Final

from emulator.engine.exit import Exit
from emulator.engine.kvm import api
from emulator.engine.kvm.findings import Findings
from emulator.engine.kvm.probe import Bench, findings_of_host
from emulator.isa.x86 import registers as r

_TURN: Final = 50
"""Exits of one kind before the other's turn."""
_DIRTY: Final = api.SYNC_REGISTERS | api.SYNC_SPECIAL


def exit_costs(turns: int, findings: Findings | None = None) -> tuple[list[int], list[int]]:
    """Nanoseconds of each bare exit, and of each trap to a handler of the engine and back to the guest."""
    bench = Bench(findings or findings_of_host())
    try:
        bare: list[int] = []
        ours: list[int] = []
        for _ in range(turns):
            bench.see("fafa")
            bare += _bare(bench)
            ours += _handled(bench)
        return bare, ours
    finally:
        bench.engine.close()


def _handled(bench: Bench) -> list[int]:
    """Traps to a handler that looks at the exit and goes on."""
    engine, times = bench.engine, [time.perf_counter_ns()]
    state, begin = engine.registers, engine.registers.rip

    def handler(exit_: Exit) -> None:
        if exit_.vector == 13:
            state.rip = begin
        times.append(time.perf_counter_ns())
        if len(times) > _TURN:
            engine.stop()

    engine.run(handler)
    return [after - before for before, after in pairwise(times[1:])]


def _bare(bench: Bench) -> list[int]:
    """The least that brings the guest back to its instruction: registers that a trap changes are written, none read."""
    cpu, run = bench.engine.bare()
    words = run[:4096].cast("Q")
    code, stack = api.SEGMENT_WORDS[r.CS], api.SEGMENT_WORDS[r.SS]
    state = bench.engine.registers
    (_, c1, c2), (_, s1, s2) = state.code, state.stack
    rip, flags, rsp = state.rip, state.rflags, state.gpr[r.RSP]
    enter, request, clock = fcntl.ioctl, api.RUN, time.perf_counter_ns
    times = []
    for _ in range(_TURN + 1):
        words[api.W_RIP], words[api.W_RFLAGS], words[api.W_RSP] = rip, flags, rsp
        words[code], words[code + 1], words[code + 2] = 0, c1, c2
        words[stack], words[stack + 1], words[stack + 2] = 0, s1, s2
        words[api.W_DIRTY] = _DIRTY
        begin = clock()
        enter(cpu, request, 0)
        times.append(clock() - begin)
    words[api.W_DIRTY] = 0
    return times[1:]
