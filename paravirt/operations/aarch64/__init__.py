"""What each sensitive instruction of AArch64 does to the virtual CPU."""

from paravirt.operations.aarch64.context import Context, prepare
from paravirt.operations.aarch64.identity import IDENTITY

__all__ = ["IDENTITY", "Context", "prepare"]
