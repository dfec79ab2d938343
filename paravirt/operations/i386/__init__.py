"""What each sensitive operation does to a virtual CPU in 32-bit mode: `PREPARE` holds all handlers."""

from collections.abc import Callable
from typing import Any

from emulator.isa.operation import Operation
from paravirt.operations.i386 import control, flags, segments, transfers
from paravirt.operations.i386.context import OWN, Context
from paravirt.operations.i386.flags import pop_flags
from paravirt.operations.x86 import PREPARE as WIDE
from paravirt.operations.x86 import Action

PREPARE: dict[Operation, Callable[[Any, Any], Action]] = {**WIDE, **OWN}
"""The handlers of x86-64, and in their place those that differ."""

__all__ = ["PREPARE", "Context", "control", "flags", "pop_flags", "segments", "transfers"]
