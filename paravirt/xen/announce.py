"""How a split device is announced in the store: one node for each end, with who may read it.

Room: `paravirt/xen` (io/xenbus.h). The back end's domain is the hypervisor itself (0) or another guest, whose drivers
find what is below `backend` in its home. Each end owns its node, and the other end reads it.
"""

from __future__ import annotations

from typing import Final

from paravirt.xen.xenstore import Permissions, Tree

INITIALISING: Final = "1"
FIRST_DISK: Final = 51712
"""xvda; each disk has 16 numbers."""


def front_path(kind: str, number: int, guest: int) -> str:
    """Where the front end of a guest's device `number` of a kind ("vbd", "vif") is told of."""
    return f"/local/domain/{guest}/device/{kind}/{number}"


def back_path(kind: str, number: int, guest: int, server: int = 0) -> str:
    """The same of its back end, in domain `server`."""
    return f"/local/domain/{server}/backend/{kind}/{guest}/{number}"


def put_all(tree: Tree, path: str, values: dict[str, str], owner: int, reader: int) -> None:
    """A node and values below it, that one domain owns and one other reads."""
    rights = Permissions((("n", owner), ("r", reader)))
    tree.put(path, "", rights)
    for name, value in values.items():
        tree.put(f"{path}/{name}", value, rights)


def announce_back(
    tree: Tree, kind: str, number: int, guest: int, server: int, values: dict[str, str], state: str = INITIALISING
) -> None:
    """Tell domain `server` of a device that it is to serve; the state comes last."""
    about = {"frontend": front_path(kind, number, guest), "frontend-id": str(guest), "online": "1"}
    put_all(tree, back_path(kind, number, guest, server), {**about, **values, "state": state}, server, guest)


def announce_front(tree: Tree, kind: str, number: int, guest: int, server: int, values: dict[str, str]) -> None:
    """Tell a guest of its device; the state comes last."""
    about = {"backend": back_path(kind, number, guest, server), "backend-id": str(server)}
    path = front_path(kind, number, guest)
    put_all(tree, path, {**about, **values, "state": INITIALISING}, guest, server)


def disk_name(index: int) -> str:
    """What Linux calls disk `index`: xvda, xvdb."""
    return f"xvd{chr(ord('a') + index)}"


__all__ = ["FIRST_DISK", "announce_back", "announce_front", "back_path", "disk_name", "front_path"]
