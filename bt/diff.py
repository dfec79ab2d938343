"""`diff`: what rewriting changed in an image, place by place, and that it changed nothing else.

Room: `bt`, beside `rewrite`. The places come from the manifest and are held against the bytes of both files, so a
change that the manifest does not tell of is an error. How it looks on paper is `bt.report`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bt import manifest as manifests
from bt.rewrite import verify
from emulator.errors import UsageError, VerifyFailed

if TYPE_CHECKING:
    from bt.image import Image
    from bt.manifest import Manifest
    from bt.plan import Plan, PlannedChange, PlannedSite

_HEADER = 64


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction."""

    address: int
    bytes: bytes
    text: str
    """Intel syntax, as iced-x86 prints it."""


@dataclass(frozen=True, slots=True)
class SiteDiff:
    """One patched site."""

    site: PlannedSite
    old: tuple[Line, ...]
    new: tuple[Line, ...]
    fixup: tuple[Line, ...]
    """The fixup's code, where there is one."""


@dataclass(frozen=True, slots=True)
class Diff:
    """All of it."""

    manifest: Manifest
    sites: tuple[SiteDiff, ...]
    """Patched sites, by ascending address."""
    untouched: tuple[PlannedSite, ...]
    """Sites where nothing is done, by ascending address."""
    changes: tuple[PlannedChange, ...]
    """What knowledge about the kernel changed besides."""

    @property
    def plan(self) -> Plan:
        """The plan that was carried out."""
        return self.manifest.plan


def disassemble(code: bytes, address: int, most: int | None = None) -> tuple[Line, ...]:
    """The instructions of `code`, at most `most` of them; bytes that are none are "(bad)"."""
    from iced_x86 import Decoder, Formatter, FormatterSyntax

    formatter = Formatter(FormatterSyntax.INTEL)
    lines = []
    for instruction in Decoder(64, code, ip=address):
        at = (instruction.ip - address) & 0xFFFF_FFFF_FFFF_FFFF
        lines.append(Line(instruction.ip, code[at : at + instruction.len], formatter.format(instruction)))
        if len(lines) == most:
            break
    return tuple(lines)


def diff(original: Image, rewritten: Image) -> Diff:
    """What differs between an image and its rewritten form.

    Raises `BadImage` for a file that carries no sound manifest, `UsageError` where it was made from another original,
    and `VerifyFailed` where bytes differ that the manifest does not tell of.
    """
    found = verify(bytes(rewritten.elf), rewritten.path)
    before = bytes(original.elf)
    if original.section(manifests.MANIFEST) is not None:
        raise UsageError(
            f"{original.path}: is itself a rewritten image; give the original first, then the rewritten one"
        )
    if len(before) != found.original_size or found.plan.sha256 != _sha256(before):
        raise UsageError(f"{rewritten.path}: was not made from {original.path}; give the original it was made from")
    after = bytes(rewritten.elf[: found.original_size])
    _check_told(before, after, found.plan, rewritten.path)
    code = {fixup.address: fixup.code for fixup in found.plan.fixups}
    patched = [site for site in found.plan.sites if site.old != site.new]
    return Diff(
        manifest=found,
        sites=tuple(_compare(site, before, after, code) for site in patched),
        untouched=tuple(site for site in found.plan.sites if site.old == site.new),
        changes=found.plan.changes,
    )


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _check_told(before: bytes, after: bytes, plan: Plan, path: str) -> None:
    differs = np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)
    differs[:_HEADER] = False
    items: list[PlannedSite | PlannedChange] = [*plan.sites, *plan.changes]
    for item in items:
        if item.old != item.new:
            differs[item.file_offset : item.file_offset + len(item.new)] = False
    if differs.any():
        at = int(np.flatnonzero(differs)[0])
        raise VerifyFailed(
            f"{path}: {int(differs.sum())} bytes differ that its manifest does not tell of, the first at file offset "
            f"{at:#x}; do not use it, rewrite the original again"
        )


def _compare(site: PlannedSite, before: bytes, after: bytes, fixups: dict[int, bytes]) -> SiteDiff:
    at, size = site.file_offset, len(site.old)
    return SiteDiff(
        site=site,
        old=disassemble(before[at : at + size], site.address),
        new=disassemble(after[at : at + size], site.address, 1),
        fixup=disassemble(fixups[site.fixup], site.fixup) if site.fixup in fixups else (),
    )
