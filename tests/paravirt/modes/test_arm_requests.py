"""An interrupt that a store to a device requests comes behind that store's block, whatever code the engine has."""

from __future__ import annotations

import pytest

from emulator.memory import PAGE_SIZE
from tests.paravirt.modes.arm_guest import FREE, KERNEL_SECTION, MappedGuest, assemble, constant

DISTRIBUTOR, INTERFACE = 0x0800_0000, 0x0801_0000
DEVICE_SECTION = 0x416
NEAR = 0xBF00_0000
"""So near to the fixups that a branch reaches them."""
AT = NEAR + 8 * PAGE_SIZE
BLOCKS = 12
ROUNDS = 4
CODE = (
    f"{constant(5, DISTRIBUTOR)}{constant(6, INTERFACE)}mov r0, #1; str r0, [r5]; str r0, [r6]; mov r0, #0xff; "
    f"str r0, [r6, #4]; mov r10, #{ROUNDS}; mov r7, #0xf00; cpsid i; cpsie i; cpsid i; cpsie i; "
    # A software-generated interrupt: for nobody, and in the last round for this processor.
    "again: cmp r10, #1; moveq r8, #0x02000000; movne r8, #0; mov r4, #0; str r8, [r5, r7]; "
    + "".join(f"b l{number}; nop; l{number}: add r4, r4, #1; " for number in range(BLOCKS))
    + "subs r10, r10, #1; bne again; cpsid i; bx lr"
)


def come(mode: str, flushed: int | None) -> tuple[int, int, int, int]:
    """Blocks done behind the store, where the interrupt came, all blocks, and exits, of a run whose translated code is
    forgotten once so many blocks are done."""
    devices = {DISTRIBUTOR: DISTRIBUTOR | DEVICE_SECTION}
    guest = MappedGuest(f"{constant(3, AT)}blx r3", mode, sections={NEAR: FREE | KERNEL_SECTION, **devices},
                        frames={8: assemble(CODE, AT)})  # fmt: skip
    engine = guest.machine.engine
    if flushed is not None:
        engine.pause_at(flushed, engine.flush_code)
    gpr = guest.run()
    assert guest.ended_by == "interrupt"
    assert gpr[10] == 1
    found = gpr[4], gpr[14], engine.progress, guest.hypervisor.exits.total
    guest.machine.close()
    return found


@pytest.mark.parametrize("mode", ["inline", "trap"])
def test_an_interrupt_comes_behind_the_store_that_requests_it(mode: str) -> None:
    known = come(mode, None)
    assert known[0] == 0, "no block behind it is done before"
    assert {come(mode, known[2] - back) for back in range(2, 2 * BLOCKS)} == {known}
