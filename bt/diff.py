"""`diff`: what two images, or two plans, differ in; and that rewriting changed nothing that it does not tell of.

Room: `bt`, beside `rewrite`. Works on `bt.report.account`'s values. The places come from manifests and scans and, for
an original and what was made from it, are held against the bytes of both files. How it looks is `bt.report`'s part.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt import manifest as manifests
from bt.rewrite import verify
from emulator.errors import UsageError, VerifyFailed

if TYPE_CHECKING:
    from bt.image import Image
    from bt.plan import Plan
    from bt.report.account import Account, SiteAccount

_HEADER: Final = 64
_FIELDS: Final[tuple[tuple[str, str], ...]] = (
    ("tactic", "tactic"),
    ("class", "behaviour"),
    ("confidence", "confidence"),
)
"""What makes a site another one than before: the name of the field for readers, and in `SiteAccount`."""

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A site that is in both, and not the same."""

    before: SiteAccount
    after: SiteAccount
    fields: dict[str, tuple[str, str]]
    """Name of a field -> its value before and after."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two accounts beside each other; everything ascends by address."""

    before: Account
    after: Account
    matched_by: str
    """"address" for two accounts of one original; "function" for two originals: by section, symbol, instruction, and
    which of those in the symbol it is."""
    gained: tuple[SiteAccount, ...]
    lost: tuple[SiteAccount, ...]
    changed: tuple[Difference, ...]
    kept: int
    """Sites that are in both and the same."""

    @property
    def same(self) -> bool:
        """Whether there is no difference."""
        return not (self.gained or self.lost or self.changed)


def compare(before: Account, after: Account) -> Comparison:
    """What `after` has, or lacks, beside `before`. Raises `UsageError` for two instruction sets."""
    if before.isa != after.isa:
        raise UsageError(
            f"{before.path} is for {before.isa} and {after.path} for {after.isa}; compare two of one instruction set"
        )
    same_original = before.sha256 == after.sha256
    keys = _by_address if same_original else _by_function
    old, new = keys(before.sites), keys(after.sites)
    changed, kept = [], 0
    for key, site in new.items():
        if key in old:
            fields = _fields(old[key], site)
            if fields:
                changed.append(Difference(old[key], site, fields))
            kept += not fields
    return Comparison(
        before=before,
        after=after,
        matched_by="address" if same_original else "function",
        gained=tuple(site for key, site in new.items() if key not in old),
        lost=tuple(site for key, site in old.items() if key not in new),
        changed=tuple(changed),
        kept=kept,
    )


def _fields(before: SiteAccount, after: SiteAccount) -> dict[str, tuple[str, str]]:
    pairs = ((name, getattr(before, field), getattr(after, field)) for name, field in _FIELDS)
    return {name: (old, new) for name, old, new in pairs if old != new}


def _by_address(sites: Iterable[SiteAccount]) -> dict[Key, SiteAccount]:
    return {(site.address, site.instruction): site for site in sites}


def _by_function(sites: Iterable[SiteAccount]) -> dict[Key, SiteAccount]:
    """By what does not move when a kernel is built anew; where no symbol is known, the section stands for it."""
    seen: dict[Key, int] = {}
    found = {}
    for site in sites:
        function = "" if site.function.startswith("0x") else site.function
        place: Key = (site.section, function, site.instruction)
        number = seen[place] = seen.get(place, -1) + 1
        found[*place, number] = site
    return found


def check(original: Image, rewritten: Image) -> Account:
    """The account of an image that was made from `original`, once its bytes are seen to be what that tells.

    Raises `BadImage` for a file that carries no sound manifest, `UsageError` where it was made from another original,
    and `VerifyFailed` where bytes differ that the manifest does not tell of.
    """
    from bt.report.source import of_manifest

    found = verify(bytes(rewritten.elf), rewritten.path)
    before = bytes(original.elf)
    if original.section(manifests.MANIFEST) is not None:
        raise UsageError(
            f"{original.path}: is itself a rewritten image; give the original first, then the rewritten one"
        )
    if not made_from(original, found):
        raise UsageError(f"{rewritten.path}: was not made from {original.path}; give the original it was made from")
    _check_told(before, bytes(rewritten.elf[: found.original_size]), found.plan, rewritten.path)
    return of_manifest(rewritten, found)


def made_from(original: Image, manifest: manifests.Manifest) -> bool:
    """Whether a manifest is of an image that was made from `original`."""
    import hashlib

    return (
        len(original.elf) == manifest.original_size and hashlib.sha256(original.elf).hexdigest() == manifest.plan.sha256
    )


def _check_told(before: bytes, after: bytes, plan: Plan, path: str) -> None:
    import numpy as np

    differs = np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)
    differs[:_HEADER] = False
    patches = [(site.patch_offset, site.old, site.new) for site in plan.sites]
    patches += [(change.file_offset, change.old, change.new) for change in plan.changes]
    for at, old, new in patches:
        if old != new:
            differs[at : at + len(new)] = False
    if differs.any():
        at = int(np.flatnonzero(differs)[0])
        raise VerifyFailed(
            f"{path}: {int(differs.sum())} bytes differ that its manifest does not tell of, the first at file offset "
            f"{at:#x}; do not use it, rewrite the original again"
        )


def diff(a: str, b: str) -> Account | Comparison:
    """What the files `a` and `b` differ in.

    For an original and the image that was made from it: the account of that, checked against both. Else a comparison
    of two images or manifests, in which an original is scanned and has sites without tactics. Raises `UsageError`,
    `BadImage`, and `VerifyFailed` as `check` does.
    """
    from bt.report import source

    before = source.open_file(a)
    after = source.open_file(b)
    if not isinstance(before, bytes) and not isinstance(after, bytes):
        old, new = manifests.read(before), manifests.read(after)
        if old is None and new is not None and made_from(before, new):
            return check(before, after)
    return compare(source.account_of(before, a, scan=True), source.account_of(after, b, scan=True))
