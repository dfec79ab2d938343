"""A snapshot's file, opened: checked before anything of it is believed, and put into a machine.

Room: `paravirt/services`. Whatever a file says may be a lie: sizes are compared with what is there, numbers with what
they count, values with their types, and shadow tables with the machine. `BadSnapshot` says what is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from emulator.errors import BadSnapshot, UsageError, brief
from emulator.isa.isas import ISAS
from emulator.memory import GuestMemory
from paravirt.hypervisor import Hypervisor
from paravirt.services.code_state import reinstate_fixups
from paravirt.services.columns import Columns, typed
from paravirt.services.machine_state import Derived, MachineState, exactness, memory_regions, reinstate
from paravirt.services.snapshot_fill import Filling, Runs, blank_rows, commit, put_first
from paravirt.services.snapshot_form import (
    CHUNK,
    DIGEST,
    FORMAT,
    FRAME,
    HASH,
    HEAD,
    MAGIC,
    PAGE,
    STATE,
    ZERO,
    derived_key,
    machine_of,
    rows_of,
)
from paravirt.services.state_columns import take_code, take_views, take_walked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paravirt.services.snapshot_form import Rows

_MOST_HEADER: Final = 1 << 24
_MOST_SECTION: Final = 1 << 30
_MOST_PARENTS: Final = 64
_MOST_MEMORY: Final = 1 << 32
_LARGE_FILE: Final = 1 << 22


class Snapshot:
    """A snapshot that was opened, and is whole."""

    def __init__(self, path: Path, depth: int = 0) -> None:
        """Raises `BadSnapshot` for what is none, of another format, or damaged, `UsageError` for no file."""
        self.path = path
        self._data = _read(path)
        self.header, at = _header(path, self._data)
        self.identity = bytes(self._data[-DIGEST:]).hex()
        self._sections: dict[str, tuple[dict[str, Any], memoryview]] = {}
        self.parent: Snapshot | None = None
        self._lent: Rows | None = None
        self._filling: Filling | None = None
        with self._explained():
            end = len(self._data) - DIGEST
            for section in self.header["sections"]:
                size = typed(int, section["size"])
                if not 0 <= size <= end - at:
                    raise ValueError(f"the section {section['name']} is longer than the file")
                self._sections[section["name"]] = section, self._data[at : at + size]
                at += size
            if at != end:
                raise ValueError(f"{end - at} bytes belong to no section")
            self._open_parent(depth)
            own = self._sections["hashes"][1]
            if len(own) % HASH:
                raise ValueError("the hashes of its contents are not whole")
            data = bytes(own)
            self._own = {data[place : place + HASH]: place // HASH for place in range(0, len(data), HASH)}
            self.description: dict[str, Any] = dict(self.header["description"])

    def _open_parent(self, depth: int) -> None:
        named = self.header["parent"]
        if named is None:
            return
        if depth >= _MOST_PARENTS:
            raise ValueError(f"it has more than {_MOST_PARENTS} parents")
        where = self.path.resolve().parent / typed(str, named["path"])
        if not where.is_file():
            raise BadSnapshot(f"{self.path}: its parent {brief(where)} is not there; put it back where it was")
        self.parent = Snapshot(where, depth + 1)
        if self.parent.identity != named["id"]:
            raise BadSnapshot(f"{self.path}: {brief(where)} is not the parent that it was made for; put that back")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever goes wrong with what the file says is the file's fault."""
        try:
            yield
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else brief(str(error))
            raise BadSnapshot(f"{self.path}: is no snapshot that can be used: {what}; make it anew") from None

    @property
    def hashes(self) -> Mapping[bytes, Any]:
        """Hashes of all contents that this snapshot or one of its parents has."""
        every: dict[bytes, Any] = {}
        one: Snapshot | None = self
        while one is not None:
            every.update(one._own)
            one = one.parent
        return every

    @property
    def machine(self) -> dict[str, Any]:
        """Instruction set, board, base and size of memory, order of bytes, checked."""
        with self._explained():
            found = self.header["machine"]
            size, base = typed(int, found["size"]), typed(int, found["base"])
            if size <= 0 or size % PAGE or size > _MOST_MEMORY or base < 0 or base % PAGE:
                raise ValueError(f"its machine has {size} bytes of memory at {base:#x}")
            isa, board, order = (typed(str, found[name]) for name in ("isa", "board", "byte_order"))
            if isa not in ISAS or order not in ISAS[isa].byte_orders:
                raise ValueError(f"its machine is for {brief(isa)} guests, {brief(order)}-endian")
            return {"isa": isa, "board": board, "base": base, "size": size, "byte_order": order}

    def columns(self) -> Columns:
        """All columns of numbers."""
        return Columns(self._columns)

    @cached_property
    def _columns(self) -> dict[str, memoryview]:
        with self._explained():
            section, data = self._sections["columns"]
            table = memoryview(self._expand(data, typed(int, section["raw"])))
            found: dict[str, memoryview] = {}
            at = 0
            for name, size in section["columns"]:
                if not 0 <= size <= len(table) - at:
                    raise ValueError(f"the column {name} is longer than all of them")
                found[typed(str, name)] = table[at : at + size]
                at += size
            return found

    @staticmethod
    def _expand(data: memoryview, size: int) -> bytes:
        import zstandard

        if not 0 <= size <= _MOST_SECTION:
            raise ValueError(f"a section of {size} bytes")
        if not size:
            return b""
        try:
            out = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(data, max_output_size=size)
        except zstandard.ZstdError as error:
            raise ValueError(f"a section cannot be expanded ({error})") from None
        if len(out) != size:
            raise ValueError(f"a section has {len(out)} bytes and says {size}")
        return out

    def places(self) -> dict[str, NDArray[np.int32]]:
        """Number of the contents of every page, by region."""
        with self._explained():
            section, data = self._sections["places"]
            table = np.frombuffer(self._expand(data, typed(int, section["raw"])), dtype="<i4")
            found, at = {}, 0
            for name, count in section["regions"]:
                if not 0 <= count <= len(table) - at:
                    raise ValueError(f"the region {name} is longer than all of them")
                found[typed(str, name)] = table[at : at + count]
                at += count
            borrowed = len(self._sections["borrowed"][1]) // HASH
            if len(table) and not -2 - borrowed < table.min() <= table.max() < len(self._own):
                raise ValueError("a page has contents that are not there")
            return found

    def _batches(self) -> Iterator[tuple[int, Rows]]:
        """Own contents in order of their number, some at a time, with the number of the first."""
        import zstandard

        section, data = self._sections["frames"]
        count = len(self._own)
        sizes = [min(FRAME, count - at) * PAGE for at in range(0, count, FRAME)]
        lengths = section["frames"]
        if len(lengths) != len(sizes) or any(length <= 0 for length in lengths) or sum(lengths) != len(data):
            raise ValueError("its frames are not of the sizes that it says")
        frames: list[Any] = []
        at = 0
        for length, size in zip(lengths, sizes, strict=True):
            frames.append(data[at : at + length])
            at += length
            if zstandard.frame_content_size(frames[-1]) != size:
                raise ValueError("a frame is not of the size that it should have")
        step = CHUNK // FRAME
        try:
            for first in range(0, len(frames), step):
                packed = np.array(sizes[first : first + step], dtype=np.uint64).tobytes()
                made = zstandard.ZstdDecompressor().multi_decompress_to_buffer(
                    frames[first : first + step], decompressed_sizes=packed, threads=-1
                )
                for number in range(len(made)):
                    yield (first + number) * FRAME, rows_of(made[number])
        except zstandard.ZstdError as error:
            raise ValueError(f"a frame cannot be expanded ({error})") from None

    def fetch(self, wanted: set[bytes]) -> dict[bytes, Rows]:
        """Contents by hash, from here and from parents."""
        found: dict[bytes, Rows] = {}
        here = sorted((number, key) for key, number in self._own.items() if key in wanted)
        at = 0
        for first, rows in self._batches() if here else ():
            while at < len(here) and here[at][0] < first + len(rows):
                number, key = here[at]
                found[key] = rows[number - first].copy()
                at += 1
        rest = wanted - found.keys()
        if rest and self.parent is not None:
            found.update(self.parent.fetch(rest))
        return found

    def fill(self, memory: GuestMemory) -> None:
        """Begin to put the guest's memory in its place, beside whatever else is done until `restore` is asked to put
        the rest into the machine that has this memory, all of it zero now."""
        self._filling = Filling(memory, self.scatter)
        self._filling.start()

    def stop(self) -> None:
        """Wait for what `fill` began."""
        if self._filling is not None:
            self._filling.join()

    def restore(self, driver: Hypervisor) -> bool:
        """Put everything into a machine whose memory is zero (or being filled); whether it goes on exit for exit as
        the saved one.

        Raises `BadSnapshot` for a snapshot of another machine, or one that makes no sense.
        """
        mine, its = machine_of(driver), self.machine
        if mine != its:
            raise BadSnapshot(f"{self.path}: is of {_told(its)}, and this is {_told(mine)}; make a machine like that")
        derived = self.header.get("derived") == derived_key(driver) and not exactness(driver)
        with self._explained():
            memories = memory_regions(driver)
            filling, self._filling = self._filling, None
            if filling is None or filling.memory is not driver.machine.memory:
                filling = Filling(driver.machine.memory, self.scatter)
                filling.run()
            pages = filling.take()
            if derived:
                for name, memory in memories.items():
                    if name != "guest" and name in pages:
                        put_first(rows_of(memory), pages.pop(name), name)
            reinstate(driver, self._state(driver, pages if derived else None))
            if not derived and self.header.get("derived"):
                self._keep_fixups(driver)
        return derived

    def scatter(self, memory: GuestMemory) -> dict[str, Rows]:
        """Put contents where they belong in the guest's memory, and give those of other regions. Raises `ValueError`
        and its kin for what cannot be."""
        places, guest = self.places(), rows_of(memory.view)
        if "guest" not in places or len(places["guest"]) != len(guest):
            raise ValueError("the guest's memory is not of the machine's size")
        commit(memory, places["guest"])
        made = {name: blank_rows(len(numbers)) for name, numbers in places.items() if name != "guest"}
        targets = []
        for name, numbers in places.items():
            target = made.get(name, guest)
            targets.append(Runs(target, numbers))
            self._borrow(target, numbers)
        for first, rows in self._batches():
            for runs in targets:
                runs.put(first, rows)
        return made

    def _borrow(self, target: Rows, numbers: NDArray[np.int32]) -> None:
        """Put what the parents have where it belongs."""
        pages = np.flatnonzero(numbers < ZERO)
        if not len(pages):
            return
        if self._lent is None:
            lent = bytes(self._sections["borrowed"][1])
            hashes = [lent[at : at + HASH] for at in range(0, len(lent), HASH)]
            found = self.parent.fetch(set(hashes)) if self.parent is not None else {}
            missing = sum(key not in found for key in hashes)
            if missing:
                raise ValueError(f"its parents lack the contents of {missing} pages")
            self._lent = np.stack([found[key] for key in hashes])
        target[pages] = self._lent[-2 - numbers[pages]]

    def _keep_fixups(self, driver: Hypervisor) -> None:
        """Another engine goes on: what it translates is its own, but the guest may hold addresses of fixups."""
        columns = self.columns()
        blank = bytes(PAGE)
        sources = [blank] * len(columns.take("code.address", signed=False))
        whole = take_code(columns, sources, b"").whole
        assert whole is not None
        reinstate_fixups(driver.code, whole)

    def _state(self, driver: Hypervisor, pages: dict[str, Rows] | None) -> MachineState:
        found = {name: typed(STATE[name], self.header["state"][name]) for name in STATE}
        columns = self.columns()
        walked, derived = take_walked(columns), None
        if pages is not None:
            sources = pages["sources"].tobytes()
            pieces = [sources[at : at + PAGE] for at in range(0, len(sources), PAGE)]
            copies = pages["copies"].tobytes()
            views = None if walked is not None and walked.roots else take_views(columns, driver.shadow)
            derived = Derived(views, take_code(columns, pieces, copies))
        return MachineState(
            processor=typed(driver.SAVED, self.header["processor"]),  # type: ignore[attr-defined]
            devices=typed(type(driver.board.state), self.header["devices"]),  # type: ignore[attr-defined]
            walked=walked,
            derived=derived,
            **found,
        )


def _told(machine: Mapping[str, Any]) -> str:
    return f"a machine for {machine['isa']} guests with {machine['size'] >> 10} KiB of memory"


def _read(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_MEMORY:
                raise BadSnapshot(f"{path}: has {size} bytes, more than any snapshot; name another file")
            if size < _LARGE_FILE:
                return memoryview(file.read())
            room = mmap.mmap(-1, size)
            room.madvise(mmap.MADV_HUGEPAGE)  # fewer faults
            return memoryview(room)[: file.readinto(room)]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: cannot be read ({reason}); name a snapshot") from None


def _header(path: Path, data: memoryview) -> tuple[dict[str, Any], int]:
    """The header of a file that is whole, and where the sections begin."""
    if len(data) < HEAD.size or bytes(data[: len(MAGIC)]) != MAGIC:
        raise BadSnapshot(f"{path}: is no snapshot of retrap; name a file that `retrap run --snapshot-at` wrote")
    _, version, size = HEAD.unpack_from(data)
    if version != FORMAT:
        raise BadSnapshot(
            f"{path}: is a snapshot of format {version}, and this retrap reads format {FORMAT}; resume it with the "
            "retrap that made it, or make it anew"
        )
    if not 0 < size <= min(_MOST_HEADER, len(data) - HEAD.size - DIGEST):
        raise BadSnapshot(f"{path}: ends within its header; it was cut short: make it anew")
    if hashlib.sha256(data[:-DIGEST]).digest() != bytes(data[-DIGEST:]):
        raise BadSnapshot(f"{path}: is damaged, as its checksum says; make it anew")
    end = HEAD.size + size
    try:
        header = json.loads(bytes(data[HEAD.size : end]))
        if not isinstance(header, dict) or not isinstance(header.get("description"), dict):
            raise ValueError("it is no table")
        names = [section["name"] for section in header["sections"]]
        if not {"columns", "places", "hashes", "borrowed", "frames"} <= set(names):
            raise ValueError(f"it has the sections {names}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadSnapshot(f"{path}: its header cannot be read ({brief(error)}); make it anew") from None
    return header, end
