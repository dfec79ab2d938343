"""What each sensitive operation of ARMv7 does to a virtual CPU: `PREPARE` holds all handlers."""

from paravirt.operations.arm import registers, status, transfers
from paravirt.operations.arm.context import PREPARE, Context, Instruction, action_for

__all__ = ["PREPARE", "Context", "Instruction", "action_for", "registers", "status", "transfers"]
