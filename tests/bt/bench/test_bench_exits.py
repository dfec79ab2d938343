"""Loops of one instruction: they are what they say, and every round of them is counted as an exit."""

from __future__ import annotations

import pytest
from iced_x86 import Decoder, FlowControl, Mnemonic

from bt.bench.exits import LOOPS, Loop, measure, program
from emulator.isa.x86.table import ROW_OF_CODE


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.name)
def test_each_loop_has_one_sensitive_instruction_and_jumps_back_to_it(loop: Loop) -> None:
    code = program(loop, 7)
    instructions = list(Decoder(64, code, ip=0x1000))
    back = next(i for i, found in enumerate(instructions) if found.flow_control == FlowControl.CONDITIONAL_BRANCH)
    assert instructions[back].near_branch_target == instructions[1].ip
    assert sum(found.code in ROW_OF_CODE for found in instructions[:back]) == 1
    assert instructions[back + 2].mnemonic == Mnemonic.OUT


def test_every_round_is_an_exit_and_costs_time() -> None:
    costs = {cost.loop.name: cost for cost in measure(times=2000, runs=1)}
    assert set(costs) == {loop.name for loop in LOOPS}
    for cost in costs.values():
        # A planted trap costs a look at the page besides.
        assert 2000 <= cost.exits <= 2010
        assert cost.microseconds > 0
