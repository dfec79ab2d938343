"""The balloon: how much memory a guest is to have, said in the store; its own driver gives frames back and takes them.

Room: `paravirt/xen`. The frames themselves move by memory_op (`paravirt.xen.calls.memory`): a frame that anything still
maps stays the guest's, and one that is given back is cleared.
"""

from __future__ import annotations

from paravirt.xen.domain import Domain
from paravirt.xen.public import PAGE


def set_target(domain: Domain, pages: int) -> None:
    """Ask a guest to have so many pages, at most as many as it was built with. It comes to that when its driver has."""
    if not 0 < pages <= domain.most_pages:
        raise ValueError(f"a target of {pages} pages for a guest of {domain.most_pages}; give 1 to {domain.most_pages}")
    home, each = f"/local/domain/{domain.number}/memory", PAGE >> 10
    store = domain.host.store
    store.put(f"{home}/static-max", str(domain.most_pages * each))
    store.put(f"{home}/target", str(pages * each))
