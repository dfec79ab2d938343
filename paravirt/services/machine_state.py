"""A whole machine but for its memory as a value: processor, devices, clock, the hypervisor's own, shadow tables, code.

Room: `paravirt/services`. `capture` is done between two blocks of the guest; a machine into which the value and its
memory are put (`reinstate`) goes on exit for exit as the first one does. What is derived of the guest's state, shadow
tables and translated code, is part of the value for that reason alone: without it the guest goes on as well, with
other fills. The processor's part is the instruction set's (`paravirt.modes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from emulator.clock import NANOSECONDS
from emulator.engine.pausing import Progress
from emulator.errors import UsageError
from emulator.memory import PAGE_SIZE
from paravirt.accounting import Key
from paravirt.hypervisor import Hypervisor
from paravirt.mmu.direct import Direct
from paravirt.mmu.direct_state import DirectState, capture_direct, reinstate_direct
from paravirt.mmu.shadow import ShadowPaging
from paravirt.mmu.snapshot import Snapshot
from paravirt.services.code_state import CodeState, capture_code, reinstate_code
from paravirt.services.view_state import capture_views, reinstate_views


@dataclass(frozen=True, slots=True)
class Derived:
    """What could be made anew, in other exits."""

    views: Any
    """`ViewState`, or as other views have theirs."""
    code: CodeState


@dataclass(frozen=True, slots=True)
class MachineState:
    """Everything but memory."""

    processor: Any
    """As the mode of the instruction set has it."""
    devices: Any
    """The board's state, with the clock."""
    shared: bytes
    """The page shared with the guest's kernel."""
    exits: tuple[tuple[Key, int], ...]
    """Exits so far, by kind."""
    view_level: int
    """The guest's level that the real processor was made ready for."""
    stepping: tuple[int | None, int] | None
    """One instruction runs alone: see `Hypervisor`."""
    armed: int | None
    """The clock's event that the engine's deadline was made for."""
    progress: Progress
    pending: tuple[int, ...]
    """What the engine has kept back."""
    walked: DirectState | None
    """The guest's own tables, where direct paging has them walked, or is to."""
    derived: Derived | None
    """None where another engine, or another technique, is to go on."""


def refusal(driver: object) -> str:
    """Why a machine's state cannot be taken, in a sentence; nothing where it can."""
    if not isinstance(driver, Hypervisor):
        return "at full privilege a machine's state is the engine's own; run the guest deprivileged to save it"
    if not hasattr(driver, "processor_state"):
        isa = driver.machine.platform.isa
        return f"the state of {isa} guests cannot be saved so; run another, or with another --virt"
    return ""


def exactness(driver: Hypervisor) -> str:
    """Why a machine cannot go on exit for exit after its state was put back, in a sentence; nothing where it can."""
    shadow = driver.shadow
    if isinstance(shadow, ShadowPaging) and not isinstance(shadow.technique, Snapshot):
        return "no shadow tables but those of the technique `snapshot` are kept; leave --memory-technique out"
    if not driver.engine.capabilities.pauses_exactly:
        return f"the {driver.engine.capabilities.name} engine does not stop at an exact place; take --engine unicorn"
    return ""


def capture(driver: Hypervisor, *, whole: bool = True) -> MachineState:
    """The state of a machine between two blocks. `whole` has what a process needs that was not there before: the
    rewriter's results. Raises `UsageError` for a machine whose state cannot be taken."""
    why = refusal(driver)
    if why:
        raise UsageError(why)
    engine: Any = driver.engine
    derived = None
    walked = _walked(driver)
    if not exactness(driver):
        views = _views(driver.shadow) if walked is None or not walked.roots else None
        derived = Derived(views, capture_code(driver.code, whole=whole))
    exact = engine.capabilities.pauses_exactly
    return MachineState(
        processor=driver.processor_state,  # type: ignore[attr-defined]
        devices=driver.board.state,  # type: ignore[attr-defined]
        shared=bytes(driver.shared.cast("B")),
        exits=tuple((key, cell[0]) for key, cell in driver.exits.cells.items()),
        view_level=driver._view_level,
        stepping=driver._stepping,
        armed=driver._armed,
        progress=engine.progress_state if exact else Progress(engine.progress, 0),
        pending=engine.pending if exact else (),
        walked=walked,
        derived=derived,
    )


def reinstate(driver: Hypervisor, state: MachineState) -> None:
    """Put a state back, into the machine that it was taken of or another of the same kind, whose memory (and, with
    `derived`, the shadow tables' words) is that of the state already.

    Raises `UsageError` as `capture` does, and `ValueError` or its kin for a state that makes no sense.
    """
    why = refusal(driver)
    if why:
        raise UsageError(why)
    engine: Any = driver.engine
    exact = engine.capabilities.pauses_exactly
    same = exact and engine.capabilities.progress_per_second == state.devices.clock.units_per_second
    if exact:
        engine.set_progress(state.progress if same else Progress(0, 0))
    driver.board.restore(_at_rate(state.devices, driver.machine.clock.units_per_second))  # type: ignore[attr-defined]
    _reset(driver)
    for cell in driver.exits.cells.values():
        cell[0] = 0
    for (operation, route), count in state.exits:
        driver.exits.cell(operation, route)[0] = count
    _set_walked(driver, state.walked)
    shadow = driver.shadow
    driver.set_processor_state(state.processor)  # type: ignore[attr-defined]
    size = len(state.shared) if same else driver.SHARED_BY_ALL  # type: ignore[attr-defined]
    driver.shared.cast("B")[:size] = state.shared[:size]
    if state.walked is not None and state.walked.roots and not same:
        shadow.technique.tell(driver)  # type: ignore[attr-defined]
    derived = state.derived if not exactness(driver) else None
    if derived is not None:
        if derived.views is not None:
            _set_views(shadow, derived.views)
        reinstate_code(driver.code, derived.code)
        driver._stepping = state.stepping
    elif isinstance(shadow, ShadowPaging):
        shadow.reset()
    engine.flush_code()
    driver._view_level = state.view_level
    driver.real_state_lost()  # type: ignore[attr-defined]
    if same:
        engine.set_progress(state.progress)  # a line that changed has asked for a deadline of its own
        engine.set_pending(state.pending)
    driver._armed = state.armed if same else None
    if not same:
        driver.machine.arm()


def _views(shadow: Any) -> Any:
    return capture_views(shadow) if isinstance(shadow, ShadowPaging) else shadow.state


def _set_views(shadow: Any, state: Any) -> None:
    if isinstance(shadow, ShadowPaging):
        reinstate_views(shadow, state)
    else:
        shadow.restore(state)


def _walked(driver: Hypervisor) -> DirectState | None:
    """The state of direct paging, where the guest has that."""
    technique = getattr(driver.shadow, "technique", None)
    return capture_direct(technique) if isinstance(technique, Direct) else None


def _set_walked(driver: Hypervisor, state: DirectState | None) -> None:
    technique = getattr(driver.shadow, "technique", None)
    if isinstance(technique, Direct):
        reinstate_direct(technique, driver, state)
    elif state is not None:
        raise ValueError("its own tables are walked, and the guest was not started with that technique")


def _reset(driver: Hypervisor) -> None:
    """Forget what was made of the state before."""
    driver.outcome = None
    driver.asleep = False
    driver._stepping = None
    driver._settled = False
    driver._own_store = driver._own_page = -1
    driver._fixups = []
    driver._actions.clear()
    driver._actions_by_page.clear()


def _at_rate(devices: Any, units: int) -> Any:
    """Devices whose clock counts another engine's progress."""
    clock = devices.clock
    if clock.units_per_second == units:
        return devices
    nanoseconds = clock.scaled // clock.units_per_second
    return replace(devices, clock=replace(clock, units_per_second=units, scaled=nanoseconds * units))


def guest_now(state: MachineState) -> int:
    """The guest's time, in nanoseconds."""
    clock = state.devices.clock
    return int(clock.scaled // clock.units_per_second)


def settled(driver: Hypervisor) -> bool:
    """Whether the guest is between two instructions of its own, where any other engine can go on."""
    alone = driver._stepping is not None or getattr(driver, "_in_shadow", False)
    return not alone and not driver._in_fixup(driver.pc)


def memory_regions(driver: Hypervisor, *, used: bool = False) -> Mapping[str, memoryview]:
    """All memory that a state depends on, by name: the guest's, and that of what is derived; of this only what is in
    `used`, rounded up to pages."""
    shadow: Any = driver.shadow
    guest = {"guest": driver.machine.memory.view}
    if not isinstance(shadow, ShadowPaging):
        return {**guest, **getattr(shadow, "memories", {})}
    pool = shadow.pool
    end = -(-((pool.used if used else pool.units) << pool.form.unit) // PAGE_SIZE) * PAGE_SIZE
    return {**guest, "tables": memoryview(pool.memory)[:end], "seen": pool._snapshots[:end]}


__all__ = ["NANOSECONDS", "Derived", "MachineState", "capture", "guest_now", "memory_regions", "reinstate", "settled"]
