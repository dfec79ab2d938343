"""What the semantics of every instruction set raise for what the guest did wrong.

Room: `emulator/isa`. An operation, a walk or a load that the architecture refuses raises an `ArchitecturalException`;
an instruction set has its own subclass with its own meaning of the fields. Nothing here knows an engine.
"""


class ArchitecturalException(Exception):
    """An exception that the guest's own processor would raise."""

    __slots__ = ("address", "error", "vector")

    def __init__(self, vector: int, error: int | None = None, address: int = 0) -> None:
        self.vector = vector
        """Which exception: a vector (x86), an exception class (ARM), a cause code (MIPS)."""
        self.error = error
        """What the architecture hands to the handler besides: an error code or a syndrome; None where there is none."""
        self.address = address
        """The faulting guest-virtual address, where the exception has one."""


class ProcessorShutdown(Exception):
    """The processor cannot go on: an exception that cannot be delivered, on architectures that then stop."""
