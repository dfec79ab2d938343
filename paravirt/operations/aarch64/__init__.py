"""What each sensitive instruction of AArch64 does to the virtual CPU."""

from paravirt.operations.aarch64.context import Context, prepare

__all__ = ["Context", "prepare"]
