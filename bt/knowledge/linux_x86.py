"""What is known of Linux on x86-64: its interrupt-flag functions and its LOCK prefixes.

Room: `bt/knowledge`. Read from the image's own tables, never from a symbol's name alone: an alternative whose
replacement is CLI and whose original is a call through memory says which word of pv_ops holds `irq_disable`
(arch/x86/include/asm/paravirt.h, Linux 5.12 to 6.7). Everything here saves exits; nothing is needed to be correct.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from bt.image import linux_tables
from bt.tactics.tactics import ImagePatch
from bt.tactics.x86 import assemble as asm
from bt.tactics.x86 import interrupt_flag
from bt.tactics.x86.layout import assemble_stub
from bt.tactics.x86.template import Template
from emulator.errors import BadImage

if TYPE_CHECKING:
    from bt.image import Image
    from bt.pagecache import PageCache
    from paravirt.translator import Fixup

LOCK: Final = b"\xf0"
DS_PREFIX: Final = b"\x3e"
_MASK: Final = (1 << 64) - 1
_KNOWN_FORMAT: Final = 1
"""Raised when what is known, or how it is kept, changes."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A word of pv_ops that holds one of the interrupt-flag functions."""

    address: int
    """Guest-virtual, as linked."""
    function: int
    """Guest-virtual address of the function it holds, as linked."""
    name: str
    template: Template


def _templates() -> dict[bytes, tuple[str, Template]]:
    """What stands for each of the three functions, by the alternative's replacement."""
    return {
        b"\x9c\x58": ("save_fl", interrupt_flag.read_flags_to(asm.RAX)),
        b"\xfa": ("irq_disable", interrupt_flag.disable()),
        b"\xfb": ("irq_enable", interrupt_flag.enable()),
    }


def slots(image: Image) -> tuple[Slot, ...]:
    """The interrupt-flag words of pv_ops, in ascending order; none where this is no such kernel."""
    tables = linux_tables.of(image)
    if tables is None:
        return ()
    found: dict[int, Slot] = {}
    templates = _templates()
    rows = tables.alternatives
    for index in np.flatnonzero(rows.replacement_lengths <= 2).tolist():
        length = int(rows.replacement_lengths[index])
        replacement = bytes(image.view(int(rows.replacements[index]), length)) if length else b""
        if replacement not in templates or rows.lengths[index] != 6:
            continue
        site = int(rows.sites[index])
        home = bytes(image.view(site, 6))
        if home[:2] != b"\xff\x15":  # call [rip+disp32]
            continue
        address = (site + 6 + int(struct.unpack_from("<i", home, 2)[0])) & _MASK
        if address not in found:
            name, template = templates[replacement]
            function = _function(image, address, replacement)
            if function is not None:
                found[address] = Slot(address, function, name, template)
    return tuple(found[address] for address in sorted(found))


def _function(image: Image, slot: int, body: bytes) -> int | None:
    """The function that a slot holds, if it does what the alternative's replacement does."""
    try:
        function = int.from_bytes(image.view(slot, 8), "little")
        return function if bytes(image.view(function, len(body))) == body else None
    except BadImage:
        return None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an image where it is linked; the same for every run, so it is kept beside the page cache."""

    slots: tuple[Slot, ...]
    changes: tuple[ImagePatch, ...]
    """All but the words of pv_ops."""


def known(image: Image, cache: PageCache | None = None) -> Known:
    """What is known of `image`: from the cache, or from its tables and symbols, which take a tenth of a second."""
    digest = hashlib.sha256(f"linux_x86 {_KNOWN_FORMAT} {image.sha256}".encode()).hexdigest()
    notes = cache.load_notes(digest) if cache is not None else None
    if notes is not None:
        named = dict(_templates().values())
        kept = tuple(Slot(address, function, name, named[name]) for address, function, name in notes["slots"])
        changes = tuple(
            ImagePatch(address, bytes.fromhex(old), bytes.fromhex(new), reason)
            for old, new, reason, addresses in notes["changes"]
            for address in addresses
        )
        return Known(kept, changes)
    found = Known(slots(image), tuple(lock_patches(image) + double_word_patches(image) + bss_patches(image)))
    if cache is not None:
        groups: dict[tuple[str, str, str], list[int]] = {}
        for change in found.changes:
            groups.setdefault((change.old.hex(), change.new.hex(), change.reason), []).append(change.address)
        cache.store_notes(
            digest,
            {
                "slots": [[slot.address, slot.function, slot.name] for slot in found.slots],
                "changes": [[*group, addresses] for group, addresses in groups.items()],
            },
        )
    return found


def stubs(known: Known, delta: int, take: Callable[[int], int | None]) -> tuple[Fixup, ...]:
    """One fixup a slot, at addresses from `take`: called instead of the function, it returns to the caller."""
    made = []
    for slot in known.slots:
        pieces = [slot.template.code, *([slot.template.finish.code] if slot.template.finish else [])]
        address = take(sum(map(len, pieces)) + len(asm.RET))
        if address is None:
            break
        made.append(assemble_stub(address, slot.function + delta, slot.template))
    return tuple(made)


def image_patches(known: Known, fixups: Sequence[Fixup], delta: int = 0) -> list[ImagePatch]:
    """What to change in the loaded image of a guest with one CPU, moved by `delta`; for strategies with fixups.

    The three words of pv_ops go to `fixups`, which `stubs` made. Each LOCK prefix
    that the kernel would replace by a DS prefix when it finds one CPU is replaced beforehand
    (arch/x86/kernel/alternative.c, alternatives_smp_unlock: it changes only those that still are LOCK, and only in
    .text), which gives the same text and saves it a change of address space for each of some thousands.
    """
    patches = []
    for slot, stub in zip(known.slots, fixups, strict=False):
        old, new = (slot.function + delta).to_bytes(8, "little"), stub.address.to_bytes(8, "little")
        patches.append(ImagePatch(slot.address + delta, old, new, f"pv_ops.irq.{slot.name} is called without an exit"))
    return patches + [
        ImagePatch(change.address + delta, change.old, change.new, change.reason) for change in known.changes
    ]


def lock_patches(image: Image) -> list[ImagePatch]:
    """The LOCK prefixes among `image_patches`."""
    tables, text = linux_tables.of(image), image.section(".text")
    if tables is None or text is None:
        return []
    start, data = text.vaddr, text.data
    offsets = sorted({int(at) - start for at in tables.smp_locks.tolist()})
    reason = "with one CPU the kernel replaces this LOCK prefix itself"
    return [
        ImagePatch(start + at, LOCK, DS_PREFIX, reason) for at in offsets if 0 <= at < len(data) and data[at] == LOCK[0]
    ]


_CX16: Final = 4 * 32 + 13
"""X86_FEATURE_CX16 (arch/x86/include/asm/cpufeatures.h)."""


def double_word_patches(image: Image) -> list[ImagePatch]:
    """The alternatives that take CMPXCHG16B in place of a function that turns interrupts off, applied beforehand.

    The processor shown to guests has the instruction, so the kernel makes the same change itself, after some thousands
    of calls of that function (arch/x86/lib/cmpxchg16b_emu.S: PUSHF, CLI and POPF each).
    """
    tables = linux_tables.of(image)
    if tables is None:
        return []
    rows = tables.alternatives
    patches = []
    for index in np.flatnonzero(rows.features == _CX16).tolist():
        site, length = int(rows.sites[index]), int(rows.lengths[index])
        if rows.inverted[index] or int(rows.replacement_lengths[index]) != length:
            continue
        old, new = bytes(image.view(site, length)), bytes(image.view(int(rows.replacements[index]), length))
        if _CALL in old and _DOUBLE_WORD in new:
            reason = "the kernel replaces this call by CMPXCHG16B itself"
            patches.append(ImagePatch(site, old, new, reason))
    return patches


_CALL: Final = b"\xe8"
_DOUBLE_WORD: Final = b"\x0f\xc7\x0f"
"""CMPXCHG16B of what RDI points to, behind its prefixes."""


_REP_STOSB: Final = b"\xf3\xaa"
_NOP: Final = b"\x66\x90"
_BSS: Final = (("__bss_start", "__bss_stop"), ("__brk_base", "__brk_limit"))
"""What clear_bss() clears (arch/x86/kernel/head64.c)."""


def bss_patches(image: Image) -> list[ImagePatch]:
    """The two REP STOSB by which Linux clears memory that its loader has just filled with zeros.

    They take an engine that executes them byte by byte a tenth of the blocks of a whole boot. Only where the image
    itself shows that no byte of the file lies there.
    """
    address_of = image.symbols.address_of
    start = address_of("clear_bss")
    end = image.symbols.end_of(start) if start is not None else None
    if start is None or end is None:
        return []
    if not all(_is_zero_filled(image, address_of(first), address_of(last)) for first, last in _BSS):
        return []
    code = bytes(image.view(start, end - start))
    places = [at for at in range(len(code) - 1) if code.startswith(_REP_STOSB, at)]
    if len(places) != len(_BSS):
        return []
    reason = "the loader has filled this memory with zeros"
    return [ImagePatch(start + at, _REP_STOSB, _NOP, reason) for at in places]


def _is_zero_filled(image: Image, first: int | None, last: int | None) -> bool:
    """Whether all memory from `first` to `last` is the image's, and zero when it is loaded."""
    segment = image.segment_at(first) if first is not None else None
    if segment is None or first is None or last is None or last > segment.vaddr + segment.memory_size:
        return False
    in_file = segment.data[first - segment.vaddr : last - segment.vaddr]
    return first <= last and not np.any(np.frombuffer(in_file, np.uint8))
