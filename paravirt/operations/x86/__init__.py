"""What each sensitive operation of x86-64 does to a virtual CPU: `PREPARE` holds all handlers."""

from paravirt.operations.x86 import control, flags, memory_and_ports, model_specific, segments, transfers
from paravirt.operations.x86.context import PREPARE, Action, Context
from paravirt.operations.x86.flags import pop_flags
from paravirt.operations.x86.model_specific import perform_identify, read_msr, write_msr

__all__ = [
    "PREPARE",
    "Action",
    "Context",
    "control",
    "flags",
    "memory_and_ports",
    "model_specific",
    "perform_identify",
    "pop_flags",
    "read_msr",
    "segments",
    "transfers",
    "write_msr",
]
