"""`rewrite`: an image and a plan become an ELF that holds both the patched kernel and the way back.

Room: `bt`, the fourth stage of the house. The output begins with the original ELF, patched in place; behind it follow
what the container had appended, the fixups, the manifest, and a new section header table (System V ABI, chapter 4).
Nothing moves, so `revert` restores the original bit for bit. An original is never opened for writing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from bt import manifest as manifests
from bt.image import elf_form
from bt.image.elf import FORMS, Form
from bt.manifest import MANIFEST, Manifest
from bt.output import write
from emulator.errors import AlreadyRewritten, BadImage, Tampered, WrongManifest

if TYPE_CHECKING:
    from bt.image import Image
    from bt.plan import Plan, PlannedChange, PlannedSite

__all__ = ["MANIFEST", "manifest_text", "original", "replay", "revert", "rewrite", "verify", "write"]

_PROGBITS, _STRTAB, _EXECUTABLE = 1, 3, 4
_ALIGNMENT: Final = 16
_GAP: Final = 512
"""Bytes between two fixups from which on they are in different sections."""
_MOST_SECTIONS: Final = 0xFF00
_OFFSET_AT, _COUNT_AT, _NAMES_AT = 6, 12, 13
"""Fields of the ELF header: e_shoff, e_shnum, e_shstrndx."""


def rewrite(image: Image, plan: Plan) -> bytes:
    """The rewritten ELF. Raises `WrongManifest` where the plan is for another image, `AlreadyRewritten` for one that
    carries a manifest, `BadImage` where the plan does not fit or the image is no ELF (`bt.image.elf_form`)."""
    if image.section(manifests.MANIFEST) is not None:
        raise AlreadyRewritten(f"{image.path}: is rewritten already; revert it first")
    from bt.plan import elf_digest

    plan.check(image, plan.mode)
    if image.raw:
        raise BadImage(f"{image.path}: is raw memory, in which nothing can be carried; rewrite its ELF form")
    original = bytes(image.elf)
    output = bytearray(original)
    for item in _changed(plan):
        _apply(output, item, image.path)
    patched_hash = _sha256(output)
    appended = bytes(image.appended)
    form = FORMS[image.isa.bits, image.byte_order]
    body = _Body(output, form, *_section_table(image, form))
    body.add(manifests.RELOCATIONS, appended, at=len(output)) if appended else None
    for address, code in _runs(plan):
        body.add(manifests.FIXUPS, code, address=address, flags=_EXECUTABLE)
    carried = replace(plan, fixups=tuple(replace(fixup, code=b"") for fixup in plan.fixups))
    body.add(
        manifests.MANIFEST,
        Manifest(
            plan=carried,
            container=image.container,
            original_size=len(original),
            original_sha256=elf_digest(image),
            patched_sha256=patched_hash,
            fixups_sha256=_sha256(_region(plan)),
            appended_size=len(appended),
            appended_sha256=_sha256(appended),
            header=original[: form.header.size],
            sizes=tuple(len(fixup.code) for fixup in plan.fixups),
            raw=elf_form.raw_of(image),
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


def _runs(plan: Plan) -> list[tuple[int, bytes]]:
    """The fixups with little between them, together: where they lie, and the bytes from the first to the last."""
    runs: list[tuple[int, bytearray]] = []
    for fixup in plan.fixups:
        if not runs or fixup.address - runs[-1][0] - len(runs[-1][1]) > _GAP:
            runs.append((fixup.address, bytearray()))
        start, code = runs[-1]
        code += bytes(fixup.address - start - len(code)) + fixup.code
    return [(start, bytes(code)) for start, code in runs]


def _section_table(image: Image, form: Form) -> tuple[bytearray, list[list[int]]]:
    """Section names and headers of the original; a lone null header where it has none."""
    fields = form.header.unpack_from(image.elf)
    offset, count, index = fields[_OFFSET_AT], fields[_COUNT_AT], fields[_NAMES_AT]
    if not image.sections:
        return bytearray(b"\0"), [[0] * 10, [0, _STRTAB, 0, 0, 0, 0, 0, 0, 1, 0]]
    if count == 0 or count + 4 >= _MOST_SECTIONS or index == 0 or index >= count:
        raise BadImage(f"{image.path}: has {count} sections and names in section {index}; no section can be added")
    size = fields[11]
    headers = [list(form.section.unpack_from(image.elf, offset + size * number)) for number in range(count)]
    return bytearray(image.sections[index].data), headers


class _Body:
    """The output while sections are added to its end."""

    def __init__(self, output: bytearray, form: Form, names: bytearray, headers: list[list[int]]) -> None:
        self._output = output
        self._form = form
        self._names = names
        self._headers = headers
        self._index = form.header.unpack_from(output)[_NAMES_AT]
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
        form = self._form
        start = self._append(bytes(self._names))
        self._headers[self._index][4:6] = [start, len(self._names)]
        table = self._append(b"".join(form.section.pack(*header) for header in self._headers))
        fields = list(form.header.unpack_from(self._output))
        fields[_OFFSET_AT] = table
        fields[11:] = [form.section.size, len(self._headers), self._index]
        form.header.pack_into(self._output, 0, *fields)
        return bytes(self._output)


def _sha256(data: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def verify(data: bytes | memoryview, path: str = "the image") -> Manifest:
    """The manifest of a rewritten ELF whose contents are what it says, its plan whole. Raises `BadImage`."""
    from bt.image import from_bytes

    return _verify(from_bytes(data, path), data, path)


def _verify(image: Image, data: bytes | memoryview, path: str) -> Manifest:
    found = manifests.read(image)
    if found is None:
        raise BadImage(f"{path}: carries no manifest, so it was not rewritten by retrap")
    end = found.original_size + found.appended_size
    if end > len(data):
        raise Tampered(f"{path}: is shorter than the original it was made from; start from the original image")
    head = len(found.header)
    patched = hashlib.sha256(found.header)
    patched.update(memoryview(data)[head : found.original_size])
    if patched.hexdigest() != found.patched_sha256:
        raise Tampered(f"{path}: was changed after it was rewritten; start from the original image")
    if _sha256(memoryview(data)[found.original_size : end]) != found.appended_sha256:
        raise Tampered(f"{path}: its relocation table was changed after it was rewritten; start from the original")
    if _sha256(_region(found.plan)) != found.fixups_sha256:
        raise Tampered(f"{path}: its fixups were changed after it was rewritten; start from the original image")
    return found


def revert(data: bytes | memoryview, path: str = "the image", appended: bool | None = None) -> bytes:
    """The original of a rewritten ELF, bit for bit. Raises `BadImage`.

    For an original that was an ELF, or a kernel as raw memory, this is the file; for another container it is what was
    inside, unpacked. With `appended` it is the ELF that was rewritten in any case, and tells whether what followed it
    is to follow.
    """
    from bt.image import from_bytes

    original, found = _revert(from_bytes(data, path), data, path, appended)
    if found.raw is None or appended is not None:
        return original
    raw = found.raw.unpacked(original)
    if raw is None:
        raise Tampered(f"{path}: its manifest does not lead to the raw kernel that it was made from; fetch that again")
    return raw


def _revert(image: Image, data: bytes | memoryview, path: str, appended: bool | None = None) -> tuple[bytes, Manifest]:
    found = _verify(image, data, path)
    end = found.original_size
    output = bytearray(found.header)
    output += memoryview(data)[len(found.header) : end]
    for item in reversed(_changed(found.plan)):
        at = _offset(item)
        if output[at : at + len(item.new)] != item.new:
            raise Tampered(
                f"{path}: at {item.address:#x} does not stand what its manifest says; start from the original"
            )
        output[at : at + len(item.old)] = item.old
    if _sha256(output) != found.original_sha256:
        raise Tampered(f"{path}: cannot be reverted, its manifest does not lead to the original; fetch that again")
    with_appended = found.container.startswith("elf") if appended is None else appended
    rest = bytes(memoryview(data)[end : end + found.appended_size]) if with_appended else b""
    return bytes(output) + rest, found


def original(image: Image) -> tuple[Image, Manifest | None]:
    """What to load when handed `image`: the original with its relocation table, and the manifest it carried.

    An image that is no rewritten one is given back as it is. Raises `BadImage` for one that was tampered with.
    """
    from bt.image import from_bytes

    if image.section(manifests.MANIFEST) is None:
        return image, None
    data, found = _revert(image, image.elf, image.path, appended=True)
    return from_bytes(data, image.path), found


def manifest_text(plan: Plan) -> bytes:
    """A plan as the JSON file from which `replay` repeats it."""
    return (json.dumps(plan.to_json(), indent=1, ensure_ascii=False) + "\n").encode()


def replay(plan: Plan, image: Image) -> bytes:
    """The rewritten form of an original by a plan that was made for it. Raises `WrongManifest` for another image."""
    from bt.plan import elf_digest

    if elf_digest(image) != plan.sha256:
        raise WrongManifest(
            f"{image.path}: is not the image that the manifest was made for (its contents hash to "
            f"{elf_digest(image)[:16]}..., not {plan.sha256[:16]}...); give that one"
        )
    return rewrite(image, plan)
