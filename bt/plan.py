"""`Plan`: a tactic and a reason for every site of an image; plain data, JSON both ways.

Room: `bt`, what the third stage of the house gives (`bt.planner` makes it). A plan has everything that rewriting needs,
byte for byte, so that a file can be rewritten, a run can repeat what the file holds, and a reader can see why a site
was not given something better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bt.scan import Confidence
from bt.tactics.tactics import STRATEGIES, Placing, Region, Tactic
from emulator.errors import BadImage, WrongManifest
from emulator.isa.operation import Operation
from paravirt.abi import ABI_VERSION
from paravirt.translator import Fixup, Hypercall

if TYPE_CHECKING:
    from bt.image import Image

FORMAT: Final = 2
"""Of the JSON; a reader refuses another by name."""


@dataclass(frozen=True, slots=True)
class PlannedSite:
    """What is done at one site."""

    address: int
    """Guest-virtual, as linked."""
    instruction: str
    """Name of its row in the table."""
    behaviour: str
    """What it does in user mode: traps, ignored, leaks, differs."""
    operation: str
    """Name of the `Operation` it stands for."""
    symbol: str
    section: str
    file_offset: int
    """Of the instruction, in the (uncompressed) image."""
    start: int
    """Guest-virtual address of `old`: the site's, or before it where its tactic takes in what comes before."""
    old: bytes
    """The bytes that the tactic stands for: the instruction, or the whole window of a fixup."""
    new: bytes
    """As many bytes, patched; equal to `old` where nothing is done."""
    tactic: Tactic
    placing: Placing
    """How the fixup is reached."""
    reason: str
    refused: str
    """Why not a better tactic; "" where there is none."""
    fixup: int
    """Guest-virtual address of its fixup, or 0."""
    confidence: Confidence
    confidence_reason: str
    state: str = ""
    """The instruction-set state ("a32", "t32"), where the instruction set has several."""
    steps: tuple[int, ...] = ()
    """Guest-virtual addresses of the changes that lead from here to its fixup, besides the site's own."""
    home: int = 0
    """Where the kernel copies it to before it runs, guest-virtual as linked; 0 where it runs where it stands."""

    @property
    def doubtful(self) -> bool:
        """It may be data."""
        return self.confidence is Confidence.DATA

    @property
    def patch_offset(self) -> int:
        """Of `old`, in the image."""
        return self.file_offset - (self.address - self.start)

    @property
    def without_trap(self) -> bool:
        """Whether it runs without a trap: neither a planted one nor its own."""
        return self.tactic in (Tactic.REPLACED, Tactic.SAME, Tactic.INLINE, Tactic.HYPERCALL, Tactic.COVERED)


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A hypercall inside a fixup."""

    address: int
    site: int
    operation: str
    """Name of an `Operation`."""
    resume: int
    instruction: bytes
    """The instruction that the hypervisor is to do, or b"" where the operation says it all."""


@dataclass(frozen=True, slots=True)
class PlannedFixup:
    """A fixup's bytes at their address."""

    address: int
    site: int
    """Guest-virtual address of the patch that leads to it."""
    code: bytes
    clobbers: tuple[str, ...] = ()
    """What it uses up beyond what its instructions change."""
    calls: tuple[PlannedCall, ...] = ()
    window: bytes = b""
    """What stands at `site` where the fixup is valid."""

    def fixup(self, delta: int = 0) -> Fixup:
        """As the hypervisor gets it; `delta` is 0 unless the fixup is valid wherever the guest lies."""
        calls = {
            call.address: Hypercall(call.site + delta, Operation[call.operation], call.resume, call.instruction)
            for call in self.calls
        }
        return Fixup(self.address, self.code, self.site + delta, calls)


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """Bytes outside the sites that change: from knowledge about the kernel, or as a step on the way to a fixup."""

    address: int
    file_offset: int
    old: bytes
    new: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it."""

    mode: str
    """The strategy: "trap", "hypercall", "inline" or "auto"."""
    isa: str
    byte_order: str
    sha256: str
    """Of the (uncompressed) image that it is for, hexadecimal."""
    sites: tuple[PlannedSite, ...]
    """By ascending address."""
    fixups: tuple[PlannedFixup, ...]
    """By ascending address."""
    changes: tuple[PlannedChange, ...]
    """By ascending address."""
    region: Region
    """Where fixups may lie."""
    end: int
    """First address of the region that the plan does not use."""
    chosen: str = ""
    """Which sites were asked for, in the match language; "" for all."""
    abi: int = ABI_VERSION

    def check(self, image: Image | None, mode: str) -> None:
        """Raise `WrongManifest` where the plan is not for this image and mode."""
        if mode != self.mode:
            raise WrongManifest(f"the plan is for mode {self.mode!r}, not {mode!r}; run it in its mode, or plan anew")
        if image is None or elf_digest(image) != self.sha256:
            raise WrongManifest("the plan is for another image; plan anew")

    def counts(self) -> dict[str, int]:
        """Sites by tactic, in the order of `Tactic`."""
        return {tactic.value: sum(site.tactic is tactic for site in self.sites) for tactic in Tactic}

    def share(self, section: str | None = None) -> float:
        """Per cent of the sites (of one section) that run without a trap; 100 where there are none.

        Sites that nobody asked for, and those that never run, do not count.
        """
        sites = [site for site in self.sites if section is None or site.section == section]
        counted = [site for site in sites if site.tactic is not Tactic.LEAVE]
        return 100.0 * sum(site.without_trap for site in counted) / len(counted) if counted else 100.0

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps` (`bt.plan_json`)."""
        from bt import plan_json

        return plan_json.to_json(self)

    @classmethod
    def from_json(cls, value: object) -> Plan:
        """The plan of plain values. Raises `BadImage` for values that make none."""
        from bt import plan_json

        return plan_json.from_json(value)

    def validate(self) -> None:
        """Raise `BadImage` where the parts do not fit each other."""
        sound = self.mode in STRATEGIES and self.region.start <= self.end <= self.region.end
        free = self.region.start
        for fixup in self.fixups:
            sound &= fixup.address >= free
            free = fixup.address + len(fixup.code)
        sound &= free <= self.end
        for site in self.sites:
            sound &= len(site.old) == len(site.new) > 0 and 0 <= site.address - site.start < 1 << 12
            sound &= site.patch_offset >= 0
        sound &= all(len(change.old) == len(change.new) > 0 for change in self.changes)
        if not sound:
            raise BadImage("the plan contradicts itself; revert and rewrite the image again")


def read_plan(text: str) -> Plan:
    """A plan from JSON text. Raises `BadImage`."""
    from bt import plan_json

    return plan_json.read_plan(text)


def elf_digest(image: Image) -> str:
    """SHA-256 of an image's contents, hexadecimal: what a plan is bound to, whatever the container."""
    import hashlib

    return image.once("digest", lambda: hashlib.sha256(image.elf).hexdigest())
