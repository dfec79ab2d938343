"""`Body`: a fixup of a fixed-width instruction set before it has an address, and the draft of a branch to it.

Room: `bt/tactics/fixed`. A body is pieces in order: code that does the same anywhere, code that is made for its
address, hypercalls. It leaves by the instruction set's branch to what follows the site, which is added to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bt.tactics.tactics import Patch
from emulator.isa.operation import Operation
from paravirt.translator import Fixup, Hypercall


@dataclass(frozen=True, slots=True)
class Code:
    """Instructions that do the same wherever they stand."""

    code: bytes


@dataclass(frozen=True, slots=True)
class Relative:
    """Instructions that depend on where they stand."""

    size: int
    """Bytes."""
    make: Callable[[int, int], bytes]
    """From their own guest-virtual address and that of the site's page. Raises `OutOfReach`."""


@dataclass(frozen=True, slots=True)
class Call:
    """A hypercall."""

    code: bytes
    """The trap that makes it."""
    operation: Operation
    offset: int
    """Of the instruction it stands for, from the page's start."""
    instruction: bytes = b""
    """That instruction, where the hypervisor is to do all of it; b"" where `operation` says what is left to do."""
    inside: bool = True
    """The guest goes on behind the call in the fixup, and not behind the site."""


Piece = Code | Relative | Call


class Branch(Protocol):
    """A branch as an instruction set encodes it."""

    def __call__(self, source: int, target: int) -> bytes:
        """The branch at guest-virtual `source`, delay slot included. Raises `OutOfReach`."""
        ...


@dataclass(frozen=True, slots=True)
class Body:
    """A fixup that has no address."""

    pieces: tuple[Piece, ...]
    start: int
    """Offset of the first byte it stands for, from the page's start."""
    end: int
    """Offset behind the last one; the fixup goes on there."""
    clobbers: tuple[str, ...] = ()
    leaves: bool = True
    """Whether it goes on at `end`; a body that ends in a branch of its own does not."""

    def size(self, leave_size: int) -> int:
        """Bytes of the fixup, which leaves by a branch of `leave_size` bytes."""
        parts = (piece.size if isinstance(piece, Relative) else len(piece.code) for piece in self.pieces)
        return sum(parts) + (leave_size if self.leaves else 0)

    def assemble(self, address: int, page: int, leave: Branch) -> Fixup:
        """The fixup at `address`, for a page at guest-virtual `page`, that leaves by `leave`. Raises `OutOfReach`."""
        code = bytearray()
        calls: dict[int, Hypercall] = {}
        for piece in self.pieces:
            at = address + len(code)
            if isinstance(piece, Relative):
                made = piece.make(at, page)
                assert len(made) == piece.size
                code += made
                continue
            if isinstance(piece, Call):
                resume = at + len(piece.code) if piece.inside else page + self.end
                calls[at] = Hypercall(page + piece.offset, piece.operation, resume, piece.instruction)
            code += piece.code
        if self.leaves:
            code += leave(address + len(code), page + self.end)
        return Fixup(address, bytes(code), page + self.start, calls)


@dataclass(frozen=True, slots=True)
class BranchDraft:
    """A body, and how a site leads to it and back; see `bt.tactics.tactics.Draft`."""

    body: Body
    branch: Branch
    """From the site: to the fixup, or to the veneer."""
    leave: Branch
    """From the fixup back."""
    leave_size: int
    """Bytes of `leave`."""
    fill: bytes
    """What stands in a window behind its branch: a trap, as wide as the narrowest instruction."""
    extra: tuple[str, ...] = ()
    """What the branches use up."""
    veneer: int = -1
    """Offset in the page of padding that holds a far branch, or -1: the site's own reaches the fixup."""
    far: Branch | None = None
    """What the veneer is made of."""

    @property
    def size(self) -> int:
        """Bytes of the fixup."""
        return self.body.size(self.leave_size)

    @property
    def clobbers(self) -> tuple[str, ...]:
        """The body's, and those of far branches."""
        return self.body.clobbers + self.extra

    def place(self, address: int, page: int) -> tuple[Fixup, tuple[Patch, ...]]:
        """The fixup, the branch to it, and the veneer where there is one. Raises `OutOfReach`."""
        start, end = self.body.start, self.body.end
        goal = page + self.veneer if self.veneer >= 0 else address
        window = self.branch(page + start, goal)
        window += self.fill * ((end - start - len(window)) // len(self.fill))
        patches = [Patch(start, window)]
        if self.veneer >= 0:
            assert self.far is not None
            patches.append(Patch(self.veneer, self.far(page + self.veneer, address)))
        return self.body.assemble(address, page, self.leave), tuple(patches)
