"""A para-virtual guest's state besides its processor: handlers, stack, timer, what was typed.

Room: `paravirt/para`. The processor's own part is its mode's; which events are pending is in the shared page.
"""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import Any, ClassVar

from paravirt.abi.guests import Trap
from paravirt.hypervisor import Hypervisor
from paravirt.para.events import MOST_TYPED, Channels
from paravirt.saved import fits


@dataclass(frozen=True, slots=True)
class ParaSaved:
    """What replaces a processor's privileged half."""

    traps: tuple[int, ...]
    """The guest's handlers."""
    kernel_stack: int
    timer: int | None
    """Virtual time in nanoseconds at which it is due."""
    period: int
    typed: bytes
    roots: tuple[int, ...]
    """Of a processor that walks no tables by itself."""


class _Both:
    """A processor's state as its mode has it (`inner`), and `ParaSaved` (`para`)."""


class ParaSaving(Hypervisor):
    """Of the hypervisor of a para-virtual guest, what saves and restores it."""

    SAVED: ClassVar[Any]
    ROOTS: ClassVar[tuple[str, ...]] = ()
    """Attributes of the virtual CPU that name tables."""

    channels: Channels
    traps: list[int]
    kernel_stack: int

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        inner = getattr(cls, "SAVED", None)
        if inner is not None and not issubclass(inner, _Both):
            cls.SAVED = make_dataclass(
                f"Para{inner.__name__}", [("inner", inner), ("para", ParaSaved)], bases=(_Both,), frozen=True
            )

    @property
    def processor_state(self) -> Any:
        """The virtual processor between two instructions, and what belongs to it."""
        channels = self.channels
        para = ParaSaved(
            traps=tuple(self.traps),
            kernel_stack=self.kernel_stack,
            timer=channels.next_wake(),
            period=channels.period,
            typed=channels.waiting,
            roots=tuple(getattr(self.vcpu, name) for name in self.ROOTS),
        )
        return self.SAVED(super().processor_state, para)  # type: ignore[misc]

    def set_processor_state(self, saved: Any) -> None:
        """Give the virtual processor a state; `real_state_lost` must follow once memory is in place."""
        para: ParaSaved = saved.para
        fits(64, (*para.traps, para.kernel_stack, para.period, para.timer or 0), "a handler, stack or time")
        fits(64, (root + 1 for root in para.roots), "a root")
        if (len(para.traps), len(para.roots)) != (len(Trap), len(self.ROOTS)) or len(para.typed) > MOST_TYPED:
            raise ValueError("the guest has other handlers, or more was typed than waits")
        super().set_processor_state(saved.inner)  # type: ignore[misc]
        self.traps[:] = para.traps
        self.kernel_stack = para.kernel_stack
        for name, root in zip(self.ROOTS, para.roots, strict=True):
            setattr(self.vcpu, name, root)
        self.channels.restore_events(para.timer, para.period, para.typed)
