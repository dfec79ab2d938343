"""The part of a MIPS32 processor that is the engine's own, real or virtual: where it is, and its link.

Room: `emulator/isa/mips`. The virtual CPU and that of a reference run have it in common; it knows the register view by
its names alone. With it they fulfil that part of `emulator.isa.mips.exceptions.Processor`.
"""

from typing import Protocol


class Registers(Protocol):
    """Of an engine's register view, what is asked."""

    @property
    def restart_address(self) -> int:
        """PC, or that of the branch before it in whose delay slot PC is."""
        ...

    @property
    def in_delay_slot(self) -> bool:
        """Whether PC is in a delay slot."""
        ...

    def jump(self, address: int) -> None:
        """Go on at `address`, outside of any delay slot."""
        ...

    def break_link(self) -> None:
        """LLbit := 0."""
        ...


class Place:
    """A processor whose place in the program is that of `registers`."""

    registers: Registers

    @property
    def restart_address(self) -> int:
        """PC, or the branch before it."""
        return self.registers.restart_address

    @property
    def in_delay_slot(self) -> bool:
        """Whether PC is in a delay slot."""
        return self.registers.in_delay_slot

    def jump(self, address: int) -> None:
        """Go on at `address`."""
        self.registers.jump(address)

    def break_link(self) -> None:
        """LLbit := 0."""
        self.registers.break_link()
