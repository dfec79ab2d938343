"""The protocol by which every instruction set takes part in scanning and rewriting: `Tactics`, `Ladder`, `Ground`.

Room: `bt/tactics`, values and protocols only. `Tactics` is what an instruction set knows without a guest (sweep and
scan code), a `Ladder` what it knows for one guest and strategy, a `Ground` what it knows around the sites of one page;
`Ground.choose` climbs. All stages use these and nothing else, at a file and at run time alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

from bt.pagescan import Found, PageScan
from emulator.isa.sensitive import SensitiveInstruction
from paravirt.translator import Fixup

if TYPE_CHECKING:
    from bt.image import Image
    from bt.pagecache import PageCache
    from bt.textmap import PristinePage, Stretch
    from emulator.isa.isas import Isa
    from emulator.isa.operation import Operation

PLANT: Final = "plant"
"""For one site: a planted trap, or a fixup that was made for such engines: on the one at hand the instruction neither
exits nor may be left as it is."""
ONLY_PLANT: Final = "only plant"
"""The same where no fixup may be made."""
STRATEGIES: Final = ("trap", "hypercall", "inline", "auto")
"""Ways to rewrite: planted traps only; fixups that call the hypervisor; fixups that do the work in the guest, the rest
traps; the best there is for each site (inline, else hypercall, else trap)."""


NO_ADDRESS: Final = "a module has no address before it is loaded, so nothing in it can lead to a fixup"
"""Why no fixup is made for a relocatable object."""


class OutOfReach(ValueError):
    """A branch cannot reach its target."""


class Refused(Exception):
    """A tactic is not sound at a site; the text is the reason, as a clause."""


class Tactic(Enum):
    """What is done at a site, best first."""

    REPLACED = "replaced"
    """Other instructions of the same length stand in its place, and need no exit."""
    SAME = "same"
    """Nothing: the instruction does the same deprivileged."""
    INLINE = "inline"
    """A fixup does the work in the guest."""
    HYPERCALL = "hypercall"
    """A fixup calls the hypervisor."""
    TRAP = "trap"
    """A planted trap."""
    NATIVE = "native"
    """Nothing: the instruction exits by itself."""
    COVERED = "covered"
    """Part of another site's fixup."""
    LEAVE = "leave"
    """Nothing: it never runs where it stands, or nobody asked for it."""


class Placing(Enum):
    """How a fixup is reached, best first."""

    NONE = ""
    """There is no fixup."""
    IN_PLACE = "in place"
    """The branch fits where the instruction stood."""
    DISPLACED = "displaced neighbours"
    """Instructions beside it, none of them sensitive, moved into the fixup to make room."""
    CLUSTER = "cluster"
    """One fixup stands for several sites."""
    PADDING = "jump by padding"
    """A short branch to padding nearby, which holds the long one: a veneer."""


class Region(NamedTuple):
    """Guest-virtual addresses where fixups may lie."""

    start: int
    end: int


class Patch(NamedTuple):
    """Bytes that change."""

    offset: int
    """From the page's start; never outside the page."""
    code: bytes


class Draft(Protocol):
    """A fixup that has no address yet."""

    @property
    def size(self) -> int:
        """Bytes it will have, at any address."""
        ...

    @property
    def clobbers(self) -> tuple[str, ...]:
        """What it uses up beyond what its instructions change, for people: "shared page word 0", "x16", ..."""
        ...

    def place(self, address: int, page: int) -> tuple[Fixup, tuple[Patch, ...]]:
        """The fixup at `address`, and the patches that lead to it, for a page at guest-virtual `page`.

        The first patch is the site's own: it begins at its choice's `start` and ends at its `end`. Raises `OutOfReach`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """A tactic for one site."""

    site: Found
    tactic: Tactic
    reason: str
    """Why this tactic, as a clause."""
    refused: str = ""
    """Why not a better one, as clauses joined by "; "; empty where there is none."""
    placing: Placing = Placing.NONE
    begin: int = -1
    """Offset of the first byte that the tactic changes or stands for, where that is not the site's."""
    behind: int = -1
    """Offset behind the last one, where that is not the site's end."""
    code: bytes = b""
    """For TRAP and REPLACED: what stands at `start` from now on."""
    draft: Draft | None = None
    """For INLINE and HYPERCALL."""

    @property
    def start(self) -> int:
        """Offset of the first byte that the tactic changes or stands for."""
        return self.begin if self.begin >= 0 else self.site.offset

    @property
    def end(self) -> int:
        """Offset behind the last one."""
        return self.behind if self.behind >= 0 else self.site.offset + self.site.length


@dataclass(frozen=True, slots=True)
class CodePage:
    """A page of code that is about to be patched."""

    address: int
    """Guest-virtual, where it runs."""
    linked: int
    """Guest-virtual, where the image has it; -1 where the image does not know it."""
    code: bytes
    """PAGE bytes."""
    after: bytes
    """Bytes that follow them, at most the instruction set's `longest`."""
    scan: PageScan
    pristine: PristinePage | None
    """What the image says of it, or None: then targets of branches from elsewhere are not known."""
    entry: int = -1
    """Offset at which execution is about to begin, which no patch may cover but with its first byte; -1: unknown."""
    changed: tuple[int, int] | None = None
    """Start and end of the offsets whose code may be another than the image's (equal: none are); None: all may be."""


@dataclass(frozen=True, slots=True)
class ImagePatch:
    """Bytes of the loaded image that are changed before the guest runs; the guest can see these."""

    address: int
    """Guest-virtual, where the guest is loaded."""
    old: bytes
    new: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Home:
    """Where the kernel copies code from one of its patch tables to."""

    start: int
    """Guest-virtual address, as linked, of the code that is copied."""
    end: int
    """Behind it."""
    address: int
    """Guest-virtual address, as linked, at which the copy will stand."""
    code: bytes
    """What will stand there: the copy, and the padding behind it."""
    condition: str
    """When the kernel makes the copy, as a clause."""


class Ground(Protocol):
    """One page around its sites."""

    def choose(self, site: Found, strategy: str, used: int = 0) -> Choice:
        """The best sound tactic that `strategy` allows; `used` is the mask of offsets that other patches hold.

        With "trap" it has no draft. A choice whose fixup finds no place is asked for again with "trap".
        """
        ...


class Ladder(Protocol):
    """An instruction set's tactics for one guest and one strategy."""

    @property
    def region(self) -> Region:
        """Where the fixups of this guest may lie."""
        ...

    @property
    def alignment(self) -> int:
        """Of a fixup's address, bytes."""
        ...

    @property
    def patches(self) -> Sequence[ImagePatch]:
        """What the loader changes in the loaded image, from knowledge about this kernel."""
        ...

    def prepare(self, take: Callable[[int], int | None]) -> tuple[Fixup, ...]:
        """The fixups that are there from the beginning; `take(size)` gives the next address. Called once, first."""
        ...

    def prepared_clobbers(self, fixup: Fixup) -> tuple[str, ...]:
        """What one of these uses up, as `Draft.clobbers` says it."""
        ...

    def survey(self, page: CodePage) -> Ground:
        """Look at a page before its sites are decided."""
        ...

    def never_run(self, image: Image) -> Sequence[Region]:
        """Executable ranges that never run where they stand: the kernel copies from them (`homes` says where to)."""
        ...

    def homes(self, image: Image) -> Sequence[Home]:
        """Where code of such ranges will run, ascending by where it is copied from; empty where that is not known."""
        ...


@runtime_checkable
class Interworking(Protocol):
    """Tactics of an instruction set whose processor has two states, in which the same bytes are other instructions."""

    def scan_states(
        self,
        image: Image | None,
        linked: int | None,
        second: bool,
        code: bytes,
        before: bytes,
        after: bytes,
        entry: int,
    ) -> PageScan | None:
        """The scan of a page some of which is of the second state; None where none is. `linked` is where the image has
        the page, or None where it has none; then it is of the state that it is entered in at offset `entry`."""
        ...


@runtime_checkable
class Extensible(Protocol):
    """A ladder that can do more operations in the guest than it does on every engine."""

    def extend(self, operations: frozenset[Operation]) -> None:
        """From now on do these in the guest, too, where there is room."""
        ...


class Tactics(Protocol):
    """An instruction set's part of scanning and rewriting, in one byte order."""

    @property
    def isa(self) -> Isa:
        """Which."""
        ...

    @property
    def longest(self) -> int:
        """Most bytes of an instruction: so much of the next page must be seen."""
        ...

    def version(self) -> str:
        """Changes with the table and the decoder: what scans kept on disk depend on. Cheap."""
        ...

    def row_of(self, code: int) -> SensitiveInstruction:
        """The row of `Found.code`, which is the instruction set's own number of an encoding (fixed-width: the row's
        index in the table). Raises KeyError."""
        ...

    def sweep(self, image: Image) -> tuple[Stretch, ...]:
        """Sweep an image's executable ranges: boundaries, targets, sites, and what is no instruction."""
        ...

    def scan_page(self, code: bytes, after: bytes, start: int, pristine: int = 0) -> PageScan:
        """Scan a page of PAGE bytes from offset `start` on; `after` are up to `longest` bytes that follow it.

        `pristine` is the mask of instruction boundaries of the page's original, or 0.
        """
        ...

    def rescan_page(self, old: bytes, scan: PageScan, new: bytes, pristine: int = 0) -> PageScan:
        """The scan of `new` from that of `old`, pages with what follows them: what `scan_page` would give."""
        ...

    def with_entry(self, scan: PageScan, code: bytes, after: bytes, entry: int) -> PageScan:
        """The scan, made to agree with execution that begins at offset `entry`."""
        ...

    def starts(self, before: bytes, whole: bytes) -> Sequence[int]:
        """Offsets at which the first instruction of a page that no image knows may begin, most likely first."""
        ...

    def ladder(self, strategy: str, image: Image | None, delta: int = 0, cache: PageCache | None = None) -> Ladder:
        """Tactics for a guest whose image (if there is one) lies `delta` bytes above where it is linked."""
        ...


@dataclass(slots=True)
class Arena:
    """A fixup region, handed out in order of request, so that a layout is deterministic.

    Nothing is ever freed, since a guest may be inside a fixup at any time.
    """

    region: Region
    alignment: int
    next: int = -1
    """The next address."""
    unit: tuple[int, int, int] = (0, 0, 0)
    """Of every so many bytes of the region, fixups lie only from the second number up to the third; 0: anywhere."""

    def __post_init__(self) -> None:
        if self.next < 0:
            self.next = self.region.start

    @classmethod
    def of(cls, ladder: Ladder) -> Arena:
        """The region of a ladder."""
        return cls(ladder.region, ladder.alignment, unit=getattr(ladder, "unit", (0, 0, 0)))

    def place(self, size: int) -> int:
        """Where the next `size` bytes would lie, were there room."""
        address = self.next
        length, first, last = self.unit
        if length:
            base = address - (address - self.region.start) % length
            address = max(address, base + first)
            if address + size > base + last:
                address = base + length + first
        return address

    def take(self, size: int) -> int | None:
        """The address of `size` bytes, or None when the region is full."""
        address = self.place(size)
        if address + size > self.region.end or (self.unit[0] and size > self.unit[2] - self.unit[1]):
            return None
        self.next = (address + size + self.alignment - 1) & -self.alignment
        return address
