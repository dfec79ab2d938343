"""`rewrite`: an image and a plan become an ELF that holds both the patched kernel and the way back.

Room: `bt`, the fourth stage of the house. The output begins with the original ELF, patched in place; behind it follow
what the container had appended, the fixups, the manifest, and a new section header table (System V ABI, chapter 4).
Nothing moves, so `revert` restores the original bit for bit. An original is never opened for writing.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt import manifest as manifests
from bt.manifest import Manifest
from emulator.errors import BadImage, UsageError

if TYPE_CHECKING:
    from bt.image import Image
    from bt.plan import Plan, PlannedChange, PlannedSite

_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SHOFF, _SHENTSIZE = 0x28, 0x3A
_HEADER_SIZE: Final = 64
_PROGBITS, _STRTAB, _EXECUTABLE = 1, 3, 4
_ALIGNMENT: Final = 16
_MOST_SECTIONS: Final = 0xFF00


def rewrite(image: Image, plan: Plan) -> bytes:
    """The rewritten ELF. Raises `UsageError` where the plan is for another image, `BadImage` where it does not fit."""
    plan.check(image, plan.mode)
    if image.section(manifests.MANIFEST) is not None:
        raise UsageError(f"{image.path}: is rewritten already; revert it first")
    original = bytes(image.elf)
    output = bytearray(original)
    for item in _changed(plan):
        _apply(output, item, image.path)
    appended = bytes(image.appended)
    header = bytes(original[:_HEADER_SIZE])
    names, sections = _section_table(image)
    body = _Body(output, names, sections)
    body.add(manifests.RELOCATIONS, appended, at=len(output)) if appended else None
    if plan.fixups:
        body.add(manifests.FIXUPS, _region(plan), address=plan.region.start, flags=_EXECUTABLE)
    patched = bytearray(output[: len(original)])
    body.add(
        manifests.MANIFEST,
        Manifest(
            plan=plan,
            container=image.container,
            original_size=len(original),
            original_sha256=_sha256(original),
            patched_sha256=_sha256(patched),
            appended_size=len(appended),
            appended_sha256=_sha256(appended),
            header=header,
        ).to_bytes(),
    )
    return body.finish()


def _changed(plan: Plan) -> list[PlannedSite | PlannedChange]:
    """What differs from the original, in an order in which it can be applied."""
    items: list[PlannedSite | PlannedChange] = [*plan.changes, *plan.sites]
    return [item for item in items if item.old != item.new]


def _offset(item: PlannedSite | PlannedChange) -> int:
    """Where in the image it begins."""
    from bt.plan import PlannedSite

    return item.patch_offset if isinstance(item, PlannedSite) else item.file_offset


def _apply(output: bytearray, item: PlannedSite | PlannedChange, path: str) -> None:
    """Replace the old bytes by the new; patches that overlap are found out by their old bytes."""
    at = _offset(item)
    found = bytes(output[at : at + len(item.old)])
    if found != item.old:
        raise BadImage(
            f"{path}: at {item.address:#x} stands {found.hex()}, the plan expects {item.old.hex()}; plan the image anew"
        )
    output[at : at + len(item.old)] = item.new


def _region(plan: Plan) -> bytes:
    """The fixups as they lie in memory, from the region's start on."""
    region = bytearray(plan.end - plan.region.start)
    for fixup in plan.fixups:
        at = fixup.address - plan.region.start
        region[at : at + len(fixup.code)] = fixup.code
    return bytes(region)


def _section_table(image: Image) -> tuple[bytearray, list[list[int]]]:
    """Section names and headers of the original; a lone null header where it has none."""
    (offset,) = struct.unpack_from("<Q", image.elf, _SHOFF)
    _, count, index = struct.unpack_from("<HHH", image.elf, _SHENTSIZE)
    if not image.sections:
        return bytearray(b"\0"), [[0] * 10, [0, _STRTAB, 0, 0, 0, 0, 0, 0, 1, 0]]
    if count == 0 or count + 4 >= _MOST_SECTIONS or index == 0 or index >= count:
        raise BadImage(f"{image.path}: has {count} sections and names in section {index}; no section can be added")
    headers = [list(_SECTION.unpack_from(image.elf, offset + _SECTION.size * number)) for number in range(count)]
    return bytearray(image.sections[index].data), headers


class _Body:
    """The output while sections are added to its end."""

    def __init__(self, output: bytearray, names: bytearray, headers: list[list[int]]) -> None:
        self._output = output
        self._names = names
        self._headers = headers
        (self._index,) = struct.unpack_from("<H", output, _SHENTSIZE + 4)
        # Made here for a file without sections, whatever its header says of names.
        if len(headers) == 2 and headers[1][1] == _STRTAB and headers[1][5] == 0:
            self._index = 1
            headers[1][0] = self._name(".shstrtab")

    def _name(self, name: str) -> int:
        at = len(self._names)
        self._names += name.encode() + b"\0"
        return at

    def _append(self, data: bytes, at: int | None = None) -> int:
        start = len(self._output) if at is not None else len(self._output) + -len(self._output) % _ALIGNMENT
        self._output += bytes(start - len(self._output)) + data
        return start

    def add(self, name: str, data: bytes, address: int = 0, flags: int = 0, at: int | None = None) -> None:
        """A section behind all others; `at`: directly behind the file's end."""
        start = self._append(data, at)
        alignment = 1 if at is not None else _ALIGNMENT
        self._headers.append([self._name(name), _PROGBITS, flags, address, start, len(data), 0, 0, alignment, 0])

    def finish(self) -> bytes:
        """The names and the table of sections, and the header that points to them."""
        start = self._append(bytes(self._names))
        self._headers[self._index][4:6] = [start, len(self._names)]
        table = self._append(b"".join(_SECTION.pack(*header) for header in self._headers))
        struct.pack_into("<Q", self._output, _SHOFF, table)
        struct.pack_into("<HHH", self._output, _SHENTSIZE, _SECTION.size, len(self._headers), self._index)
        return bytes(self._output)


def _sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def verify(data: bytes, path: str = "the image") -> Manifest:
    """The manifest of a rewritten ELF whose contents are what it says. Raises `BadImage`."""
    from bt.image import from_bytes

    found = manifests.read(from_bytes(data, path))
    if found is None:
        raise BadImage(f"{path}: carries no manifest, so it was not rewritten by retrap")
    end = found.original_size + found.appended_size
    if end > len(data):
        raise BadImage(f"{path}: is shorter than the original it was made from; start from the original image")
    patched = found.header + data[_HEADER_SIZE : found.original_size]
    if _sha256(patched) != found.patched_sha256:
        raise BadImage(f"{path}: was changed after it was rewritten; start from the original image")
    if _sha256(data[found.original_size : end]) != found.appended_sha256:
        raise BadImage(f"{path}: its relocation table was changed after it was rewritten; start from the original")
    return found


def revert(data: bytes, path: str = "the image", appended: bool | None = None) -> bytes:
    """The original of a rewritten ELF, bit for bit. Raises `BadImage`.

    For an original that was an ELF this is the file; for a bzImage it is the ELF inside. `appended` says whether
    what followed the ELF is to follow (by default: as the file was).
    """
    found = verify(data, path)
    end = found.original_size
    output = bytearray(found.header + data[_HEADER_SIZE:end])
    for item in reversed(_changed(found.plan)):
        at = _offset(item)
        if output[at : at + len(item.new)] != item.new:
            raise BadImage(
                f"{path}: at {item.address:#x} does not stand what its manifest says; start from the original"
            )
        output[at : at + len(item.old)] = item.old
    if _sha256(output) != found.original_sha256:
        raise BadImage(f"{path}: cannot be reverted, its manifest does not lead to the original; fetch that again")
    with_appended = found.container == "elf64" if appended is None else appended
    return bytes(output) + (data[end : end + found.appended_size] if with_appended else b"")


def original(image: Image) -> tuple[Image, Manifest | None]:
    """What to load when handed `image`: the original with its relocation table, and the manifest it carried.

    An image that is no rewritten one is given back as it is. Raises `BadImage` for one that was tampered with.
    """
    from bt.image import from_bytes

    found = manifests.read(image)
    if found is None:
        return image, None
    return from_bytes(revert(bytes(image.elf), image.path, appended=True), image.path), found


def write(path: Path, data: bytes, source: Path) -> None:
    """Write an output file: beside it, then renamed. Raises `UsageError` where that would replace the original."""
    if path.exists() and source.exists() and path.samefile(source):
        raise UsageError(f"{path}: is the original, which is never overwritten; name another output")
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); name a file that can") from None
