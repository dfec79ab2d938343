"""What the event loop and the code pages ask of a technique of memory virtualisation.

Room: `paravirt/mmu`. Shadow page tables (`shadow`) fulfil it, and so does what fills an engine's software TLB. A frame
is named by its number in guest memory: 0 is the first page of memory, wherever that lies.
"""

from typing import Any, Protocol

KERNEL_VIEW, USER_VIEW = 0, 1
"""What the guest's kernel may reach, and what its user code may."""

PLAIN, MAY_BE_CODE, ACTIVE_CODE, USER_CODE = 0, 1, 2, 3
"""Kinds of frames: nothing is known; the kernel may execute it; it executes from a copy now; user code runs from it."""


class MemoryViews(Protocol):
    """The two views of the guest's memory, filled on demand. In the kernel view no page is writable and executable."""

    view: int
    """The one in use."""
    fills: int
    """Pages made accessible one by one, since something faulted."""
    prefilled: int
    """Pages made accessible ahead of that."""

    def use(self, view: int) -> None:
        """Make `view` of the current guest address space the one that the engine runs in."""
        ...

    def fill(self, address: int, write: bool, fetch: bool) -> None:
        """Make `address` accessible as the guest's tables allow; raises the guest's own exception."""
        ...

    def install_window(self) -> None:
        """Map the hypervisor window in the kernel view of the current address space."""
        ...

    def frame_of(self, address: int) -> int:
        """The frame that the guest's kernel has mapped at `address`, or -1."""
        ...

    def expose(self, address: int, frame: int, writable: bool) -> Any:
        """Map the guest's own frame, executable and readable, for the page of kernel code at `address`, until `drop` is
        called with what this returns. Raises the guest's exception when the page may not be mapped any more."""
        ...

    def drop(self, at: Any) -> None:
        """Remove one mapping; `flush_tlb` must follow."""
        ...

    def flush_tlb(self) -> None:
        """Let the engine forget mappings that were removed."""
        ...

    def mark_code(self, first: int, last: int) -> None:
        """Frames `first`..`last` may hold kernel code: map them read-only until they are written."""
        ...

    def revoke_writers(self, number: int) -> None:
        """Take every writable mapping of a frame away, since it is about to execute."""
        ...

    def set_kind(self, number: int, kind: int) -> None:
        """Note what a frame is."""
        ...

    def written(self, number: int) -> None:
        """The hypervisor is about to write to a frame for the guest: code in it leaves use."""
        ...

    def attach(self, code: "CodeSource") -> None:
        """Connect to the code pages."""
        ...


class CodeSource(Protocol):
    """What the views ask of the code pages."""

    def activate(self, address: int, frame: int, at: Any) -> int:
        """Engine-physical address of the copy to execute for the page at `address`; `at` is what will map it."""
        ...

    def copy_at(self, physical: int) -> memoryview:
        """The 4096 bytes of the copy at an engine-physical address."""
        ...

    def deactivate(self, frame: int) -> None:
        """The guest is about to write to `frame`: its copies leave use."""
        ...

    def forget_mappings(self) -> None:
        """All mappings are gone."""
        ...

    @property
    def has_fixups(self) -> bool:
        """Whether some translated code leads to a fixup."""
        ...
