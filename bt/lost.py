"""The last state of a guest whose engine crashed: what can still be seen of it, without asking the engine anything.

Room: `bt`. Registers come from the memory in which the engine kept them; in the block that crashed they may be those of
its beginning. Every value is plain, for people and programs alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bt import xen
from emulator.native import NativeCpu

if TYPE_CHECKING:
    from bt.session import Session
    from emulator.errors import EngineCrashed


def last_state(session: Session, crash: EngineCrashed) -> dict[str, Any]:
    """Signal, address, position, last exits and registers of the guest of `session`."""
    driver, machine = session.driver, session.machine
    state: dict[str, Any] = {
        "signal": crash.signal,
        "address": f"{crash.address:#x}",
        "symbol": session.symbol(crash.address),
        "progress": machine.engine.progress,
        "guest_nanoseconds": machine.clock.now(),
        "last_exit": crash.last_exit,
    }
    if not isinstance(driver, NativeCpu):
        state["last_operation"] = _last_operation(driver)
        state["exits"] = driver.exits.total
    state["registers"] = {name: f"{value:#x}" for name, value in _registers(session)}
    return state


def lines(state: Mapping[str, Any]) -> Iterator[str]:
    """The same for people."""
    yield f"last state: {state['progress']} blocks, {state['guest_nanoseconds'] / 1e9:.6f} s of guest time"
    yield f"at {state['address']} {state['symbol']}".rstrip()
    if "exits" in state:
        yield f"{state['exits']} exits, the last {state['last_exit']}, done as {state['last_operation']}"
    pairs = [f"{name:>8} {value}" for name, value in state["registers"].items()]
    for at in range(0, len(pairs), 4):
        yield "  ".join(pairs[at : at + 4])


def _last_operation(driver: Any) -> str:
    last = driver.exits.last
    for (operation, route), cell in driver.exits.cells.items():
        if cell is last:
            return f"{operation} ({route})"
    return "nothing"


def _registers(session: Session) -> Iterator[tuple[str, int]]:
    if session.options.mode == xen.MODE:
        from bt.verify.views.xen import XenView

        yield from XenView(session).final()
        return
    from bt.verify.views import PROCESSORS

    yield from PROCESSORS[session.image.isa.name].load()(session).final()
