"""What page-table calls reach of a hypervisor: its guest's memory and translations.

Room: `paravirt/para`. Each instruction set's para-virtual hypervisor fulfils it.
"""

from typing import Literal, Protocol


class TableMachine(Protocol):
    """Of a hypervisor, what is needed to change page tables for its guest."""

    entry_bytes: int
    """Bytes of a page-table entry now."""
    levels: int
    """Levels of tables now."""
    byte_order: Literal["little", "big"]

    def is_memory(self, physical: int, size: int) -> bool:
        """Whether the guest-physical range is the guest's own memory."""
        ...

    def is_root(self, value: int) -> bool:
        """Whether a root register may hold the value."""
        ...

    def entry_address(self, address: int) -> int | None:
        """Guest-physical address of the last-level entry for a guest-virtual address; None where there is no table."""
        ...

    def load(self, physical: int, size: int) -> bytes:
        """Guest memory. Within it."""
        ...

    def store(self, physical: int, data: bytes) -> None:
        """Store into guest memory as the guest would: what watches memory is told. Within it."""
        ...

    def load_root(self, value: int) -> None:
        """Change the address space."""
        ...

    def load_kernel_root(self, root: int, part: int) -> int:
        """Change what all address spaces share; the result of the call. Raises `Refused`."""
        ...

    def forget_page(self, address: int) -> None:
        """Drop one translation."""
        ...

    def forget_all(self) -> None:
        """Drop all."""
        ...
