"""The `Translator` protocol: what the hypervisor asks of run-time rewriting.

Room: `paravirt`. The hypervisor executes kernel code only from *translated pages*: copies of
guest frames in frames of its own, mapped read-execute at the guest's address. The guest's own
frame stays pristine, so reads through any other mapping, and the final memory, show the guest's
bytes. A `Translator` makes the copy's bytes; `bt.loadtime` provides one per mode.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from emulator.isa.operation import Operation


@dataclass(frozen=True, slots=True)
class Hypercall:
    """A trap planted *inside a fixup*: the fixup's way to call the hypervisor."""

    site: int
    """Guest-virtual address of the patched instruction the call stands for."""
    operation: Operation
    """What the hypervisor is asked to do."""
    resume: int
    """Guest-virtual address at which the guest goes on (in the fixup or behind the site)."""
    instruction: bytes = b""
    """The guest's instruction that is to be done as if it had trapped at `site`; b"": what is left of `operation`."""


@dataclass(frozen=True, slots=True)
class Fixup:
    """Code that stands for one or more patched instructions."""

    address: int
    """Guest-virtual address, inside the hypervisor's fixup region."""
    code: bytes
    """Machine code; ends in a jump back behind the site."""
    site: int
    """Guest-virtual address of the patched site."""
    hypercalls: Mapping[int, Hypercall] = field(default_factory=dict)
    """Planted traps by their guest-virtual address."""


@dataclass(frozen=True, slots=True)
class Translation:
    """A page of guest kernel code, made fit to run deprivileged."""

    code: bytes
    """4096 bytes to execute in place of the guest's."""
    fixups: tuple[Fixup, ...]
    """Fixups this page's patches jump to, not yet seen by the hypervisor."""
    sites: int
    """How many sensitive instructions were found."""


class Translator(Protocol):
    """Rewrites pages of guest kernel code at their first execution."""

    def translate(self, address: int, code: bytes, before: bytes, after: bytes, entry: int) -> Translation:
        """Translate the page at guest-virtual `address` (page-aligned).

        `code` is the page's 4096 bytes; `before` and `after` are up to 15 bytes of the
        neighbouring virtual pages (empty where nothing is mapped); `entry` is the
        guest-virtual address about to execute. Deterministic: equal arguments in equal order
        give equal results.
        """
        ...


class Untouched:
    """The translator of a guest that is run deprivileged as it is: the negative control."""

    def translate(self, address: int, code: bytes, before: bytes, after: bytes, entry: int) -> Translation:
        """The page's own bytes."""
        return Translation(bytes(code), (), 0)
