"""Whether a domain's frames are what they are counted as: all tables in use are read again, and every count made anew.

Room: `paravirt/xen`. For tests and measurements; a running guest is safe because each step keeps the counts, and this
says whether it did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from paravirt.mmu.frame_types import DESCRIPTORS, KIND_NAMES
from paravirt.xen.domain import Domain
from paravirt.xen.public import FIRST_SLOT, LAST_SLOT

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FRAME, _WRITE = 0x000F_FFFF_FFFF_F000, 2


def recount(domain: Domain) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Uses and references of every frame, by its place, as tables, pins, roots and descriptors amount to."""
    frames, vcpu = domain.frames, domain.vcpu
    uses, refs = (np.zeros(frames.count, dtype=np.uint32) for _ in range(2))
    held = [vcpu.kernel_root, vcpu.user_root, *vcpu.descriptor_frames, *vcpu.local_frames.values()]
    if domain.info_frame is not None:
        held.append(domain.info_frame)
    held += domain.held
    held += [frame for frame, write in domain.grants.held if write]
    for frame in (frame for frame, write in domain.grants.held if not write):
        refs[frame - frames.first] += 1
    own = (frames.owner_array == domain.owned.number) & (frames.uses_array != 0)
    held += (np.flatnonzero(own & (np.frombuffer(frames.pinned, dtype=np.uint8) != 0)) + frames.first).tolist()
    for frame in held:
        if frame:
            uses[frame - frames.first] += 1
            refs[frame - frames.first] += 1
    tables = (frames.owner_array > 1) & (frames.uses_array != 0)  # others may have mapped what it granted
    for at in np.flatnonzero(tables & (frames.kind_array >= 1) & (frames.kind_array <= 4)).tolist():
        targets, writable = _targets(domain, at)
        if frames.kind[at] > 1:
            targets = targets[targets != at]
            np.add.at(uses, targets, 1)
        else:
            np.add.at(uses, targets[writable], 1)
        np.add.at(refs, targets, 1)
    return uses, refs


def _targets(domain: Domain, at: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Places that a table's entries lead to, and which entries are writable; the hypervisor's entries are left out."""
    frames = domain.frames
    words = np.frombuffer(domain.page(at + frames.first), dtype=np.uint64)
    if frames.kind[at] == 4:
        words = np.concatenate((words[:FIRST_SLOT], words[LAST_SLOT + 1 :]))
    words = words[words & np.uint64(1) != 0]
    targets = ((words & np.uint64(_FRAME)) >> np.uint64(12)).astype(np.int64) - frames.first
    return targets, words & np.uint64(_WRITE) != 0


def violations(domain: Domain) -> list[str]:
    """A sentence for every frame whose counts are wrong, and for every table that a last-level entry maps writable."""
    frames = domain.frames
    uses, refs = recount(domain)
    own = frames.owner_array == domain.owned.number
    wrong = own & ((uses != frames.uses_array) | (refs != frames.refs_array))
    found = [
        f"machine frame {at + frames.first:#x} ({KIND_NAMES[frames.kind[at]]}): {frames.uses[at]} uses and "
        f"{frames.refs[at]} references are counted, {uses[at]} and {refs[at]} there are"
        for at in np.flatnonzero(wrong).tolist()
    ]
    for at in np.flatnonzero((frames.kind_array == 1) & (frames.uses_array != 0)).tolist():
        targets, writable = _targets(domain, at)
        for target in targets[writable].tolist():
            if frames.uses[target] and frames.kind[target] <= DESCRIPTORS:
                what = f"{KIND_NAMES[frames.kind[target]]} {target + frames.first:#x}"
                found.append(f"the table in machine frame {at + frames.first:#x} maps {what} writable")
    return found
