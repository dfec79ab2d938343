"""Translated code as a value: which copy stands for which frame, which fixups there are, what they ask for.

Room: `paravirt/services`. In the process that made them, copies and fixups stay where they are when the guest goes
back: their contents never change, and what is asked for again is found. Another process is given all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from paravirt.mmu.code import CodePages, _Copy
from paravirt.translator import Hypercall


class CopyState(NamedTuple):
    """One translated copy."""

    address: int
    """Guest-virtual address of the page."""
    frame: int
    source: bytes
    physical: int
    entries: tuple[Any, ...]
    entered: frozenset[int]


@dataclass(frozen=True, slots=True)
class WholeCode:
    """What a process needs that has not translated the code itself."""

    copies: bytes
    """Contents of all copies, 4 KiB each, in order of their number."""
    addresses: tuple[int, ...]
    """Guest-virtual address that each copy was made for."""
    fixups: dict[int, bytes]
    sites: dict[int, int]
    hypercalls: dict[int, Hypercall]


@dataclass(frozen=True, slots=True)
class CodeState:
    """All translated code."""

    used: int
    """Copies made."""
    counts: tuple[int, int, int]
    """Translations, sites and uses again so far."""
    pages: tuple[CopyState, ...]
    whole: WholeCode | None


def capture_code(code: CodePages, *, whole: bool) -> CodeState:
    """Take the state of translated code."""
    pages = tuple(
        known
        if (known := copy.known) is not None
        and len(known.entered) == len(copy.entered)
        and known.entries == tuple(copy.entries)
        else _told(place, copy)
        for place, copy in code._copies.items()
    )
    counts = code.translations, code.sites, code.reused
    return CodeState(code._used, counts, pages, _whole(code) if whole else None)


def _told(place: tuple[int, int], copy: _Copy) -> CopyState:
    """A copy as a value; kept, since most copies are the same at the next checkpoint."""
    copy.known = CopyState(*place, copy.source, copy.physical, tuple(copy.entries), frozenset(copy.entered))
    return copy.known  # type: ignore[no-any-return]


def _whole(code: CodePages) -> WholeCode:
    addresses = [0] * code._used
    for (address, _), physical in code._known.items():
        addresses[physical - code._layout.code >> 12] = address
    return WholeCode(
        bytes(code._code[: code._used << 12]),
        tuple(addresses),
        dict(code._fixups),
        dict(code.fixup_sites),
        dict(code.hypercalls),
    )


def reinstate_code(code: CodePages, state: CodeState) -> None:
    """Put a state back. Raises `ValueError` for one that is none of such a machine, or of another process."""
    if state.whole is not None:
        _put_whole(code, state.used, state.whole)
    if not state.used <= code._used:
        raise ValueError("the translated code of that state is not there any more")
    first, end = code._layout.code, code._layout.code + (code._used << 12)
    code._copies.clear()
    code._by_frame.clear()
    for page in state.pages:
        if not first <= page.physical < end or page.physical & 0xFFF or len(page.source) != 4096:
            raise ValueError(f"a translated page at {page.address:#x} is none of this machine's")
        copy = _Copy(page.source, page.physical)
        copy.known = page
        copy.entries[:] = page.entries
        copy.entered |= page.entered
        code._copies[page.address, page.frame] = copy
        code._by_frame.setdefault(page.frame, []).append(copy)
    code.note_frames()
    code.translations, code.sites, code.reused = state.counts


def _put_whole(code: CodePages, used: int, whole: WholeCode) -> None:
    layout = code._layout
    if not (0 <= used <= layout.code_count and len(whole.copies) == used << 12 and len(whole.addresses) == used):
        raise ValueError("the translated code of the saved machine is not of the size that it says")
    reinstate_fixups(code, whole)
    code._code[: used << 12] = whole.copies
    code._used = used
    code._known = {
        (address, whole.copies[number << 12 : (number + 1) << 12]): layout.code + (number << 12)
        for number, address in enumerate(whole.addresses)
    }


def reinstate_fixups(code: CodePages, whole: WholeCode) -> None:
    """Put the fixups back: a guest may hold their addresses, whatever engine goes on with it."""
    abi = code._abi
    for address, contents in whole.fixups.items():
        offset = address - abi.fixups
        if not 0 <= offset <= abi.fixup_size - len(contents):
            raise ValueError(f"a fixup at {address:#x} lies outside the fixup region")
        code._window[offset : offset + len(contents)] = contents
    addresses = range(abi.last_address + 1)
    for call in whole.hypercalls.values():
        if call.site not in addresses or call.resume not in addresses:
            raise ValueError(f"a fixup calls for {call.site:#x}, which is no address")
    if not all(site in addresses for site in whole.sites.values()):
        raise ValueError("a fixup stands for what is no address")
    code._fixups = dict(whole.fixups)
    code.fixup_sites.clear()
    code.fixup_sites.update(whole.sites)
    code.hypercalls.clear()
    code.hypercalls.update(whole.hypercalls)
