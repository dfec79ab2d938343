"""The tree of xenstore: names, values and permissions, transactions that conflict or not, and watches.

Room: `paravirt/xen`. A tree is a value: a change makes new nodes along one path and leaves all others as they were, so
that a transaction is a root that was remembered. Errors and their names are those of docs/misc/xenstore.txt. It knows
no ring and no guest (`paravirt.xen.store`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

MOST_VALUE: Final = 2048
"""Bytes of one value."""
MOST_ABSOLUTE, MOST_RELATIVE = 3072, 2048
"""Characters of a name."""
MOST_NODES: Final = 1000
"""Nodes that one guest may own."""
MOST_TRANSACTIONS: Final = 10
MOST_PERMISSIONS: Final = 16
MOST_STEPS: Final = 2048
"""Changes in one transaction, and nodes that it looks at."""
_LETTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@")
_READ, _WRITE = "rb", "wb"


class StoreError(Exception):
    """A request is refused, by the name of the error."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """Who may do what with a node: "n1" is owned by domain 1 and nobody else's, then one entry for each other."""

    entries: tuple[tuple[str, int], ...] = (("n", 0),)
    """Letter (none, read, write, both) and domain; the first one is the owner's, its letter everybody else's."""

    @property
    def owner(self) -> int:
        """Whose the node is."""
        return self.entries[0][1]

    def allow(self, domain: int, letters: str) -> bool:
        """Whether a domain may do what one of these letters says."""
        if domain in (0, self.owner):
            return True
        letter = next((letter for letter, who in self.entries[1:] if who == domain), self.entries[0][0])
        return letter in letters

    def encoded(self) -> bytes:
        """As the protocol has them."""
        return b"".join(f"{letter}{domain}".encode() + b"\0" for letter, domain in self.entries)

    @classmethod
    def decoded(cls, parts: list[bytes]) -> Permissions:
        """From the protocol. Raises `StoreError`."""
        entries = []
        for part in parts:
            text = part.decode("ascii", "replace")
            if len(text) > 6 or text[:1] not in tuple("nrwb") or not (text[1:].isascii() and text[1:].isdecimal()):
                raise StoreError("EINVAL")
            entries.append((text[0], int(text[1:])))
        if not 0 < len(entries) <= MOST_PERMISSIONS:
            raise StoreError("EINVAL" if not entries else "ENOSPC")
        return cls(tuple(entries))


_NOTHING: Final[Mapping[str, Node]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Node:
    """One name's value, permissions and children."""

    value: bytes = b""
    permissions: Permissions = Permissions()
    children: Mapping[str, Node] = field(default_factory=lambda: _NOTHING)

    def seen(self) -> tuple[bytes, Permissions, tuple[str, ...]]:
        """What a reader of this node learns."""
        return self.value, self.permissions, tuple(self.children)


def split(path: str) -> list[str]:
    """The steps of an absolute path. Raises `StoreError` for a name that cannot be."""
    if not path.startswith("/") or len(path) > MOST_ABSOLUTE or not _LETTERS.issuperset(path):
        raise StoreError("EINVAL")
    if path == "/":
        return []
    steps = path[1:].split("/")
    if "" in steps or len(steps) > 64:
        raise StoreError("EINVAL")
    return steps


def find(root: Node, steps: list[str]) -> Node | None:
    """The node behind so many steps."""
    node: Node | None = root
    for step in steps:
        if node is None:
            return None
        node = node.children.get(step)
    return node


def _changed(node: Node, steps: list[str], change: Callable[[Node | None], Node | None]) -> Node:
    """A tree in which `change` was made to the child behind `steps` (one at least), whose parent there is."""
    children = dict(node.children)
    step = steps[0]
    new = change(children.get(step)) if len(steps) == 1 else _changed(children[step], steps[1:], change)
    if new is None:
        children.pop(step, None)
    else:
        children[step] = new
    return replace(node, children=MappingProxyType(dict(sorted(children.items()))))


def _owned(node: Node, owner: int) -> int:
    return (node.permissions.owner == owner) + sum(_owned(child, owner) for child in node.children.values())


@dataclass(slots=True)
class View:
    """A tree while it is read and changed: the whole store's, or that of a transaction."""

    root: Node
    start: Node
    """As it was at first."""
    read_paths: set[tuple[str, ...]] = field(default_factory=set)
    """What was looked at."""
    changes: list[tuple[str, list[str], Callable[[Node | None], Node | None]]] = field(default_factory=list)
    """What was done, in order: path, its steps, and the change."""

    def get(self, domain: int, path: str, letters: str) -> Node:
        """A node that a domain may use so. Raises `StoreError`."""
        steps = split(path)
        self._looked(steps)
        node = find(self.root, steps)
        if node is None:
            # Whether there is such a node, only who may read its parents is told.
            above = self._nearest(steps)[0]
            raise StoreError("ENOENT" if above.permissions.allow(domain, _READ + _WRITE) else "EACCES")
        if not node.permissions.allow(domain, letters):
            raise StoreError("EACCES")
        return node

    def _nearest(self, steps: list[str]) -> tuple[Node, int]:
        node, depth = self.root, 0
        for step in steps:
            child = node.children.get(step)
            if child is None:
                break
            node, depth = child, depth + 1
        return node, depth

    def _looked(self, steps: list[str]) -> None:
        if len(self.read_paths) >= MOST_STEPS or len(self.changes) >= MOST_STEPS:
            raise StoreError("ENOSPC")
        self.read_paths.add(tuple(steps))

    def _do(self, path: str, steps: list[str], change: Callable[[Node | None], Node | None]) -> None:
        self.root = _changed(self.root, steps, change)
        self.changes.append((path, steps, change))

    def write(self, domain: int, path: str, value: bytes) -> None:
        """Set a value; the node and those above it are made where there are none. Raises `StoreError`."""
        if len(value) > MOST_VALUE:
            raise StoreError("ENOSPC")
        steps = self._make(domain, path)
        self._do(path, steps, lambda node: replace(node or Node(), value=value))

    def make(self, domain: int, path: str) -> None:
        """Make a node without a value; harmless where there is one. Raises `StoreError`."""
        steps = split(path)
        if find(self.root, steps) is None:
            self._make(domain, path)
        else:
            self.get(domain, path, _WRITE)

    def _make(self, domain: int, path: str) -> list[str]:
        steps = split(path)
        if not steps:
            raise StoreError("EINVAL")
        node, depth = self._nearest(steps)
        self._looked(steps[:depth])
        if not node.permissions.allow(domain, _WRITE):
            raise StoreError("EACCES")
        if domain and depth < len(steps) and _owned(self.root, domain) + len(steps) - depth > MOST_NODES:
            raise StoreError("ENOSPC")
        rights = node.permissions
        if domain:
            rights = Permissions(((rights.entries[0][0], domain), *rights.entries[1:]))
        for end in range(depth + 1, len(steps) + 1):
            new = Node(permissions=rights)
            self._do("/" + "/".join(steps[:end]), steps[:end], lambda old, new=new: old or new)  # type: ignore[misc]
        return steps

    def remove(self, domain: int, path: str) -> None:
        """Remove a node and all below it. Raises `StoreError`."""
        steps = split(path)
        if not steps:
            raise StoreError("EINVAL")
        if find(self.root, steps) is None:
            parent = find(self.root, steps[:-1])
            if parent is None:
                raise StoreError("ENOENT")
            if not parent.permissions.allow(domain, _WRITE):
                raise StoreError("EACCES")
            return  # as Xen's own: what is gone already is removed
        self.get(domain, path, _WRITE)
        self._do(path, steps, lambda _old: None)

    def permit(self, domain: int, path: str, permissions: Permissions) -> None:
        """Set permissions, which the owner may. Raises `StoreError`."""
        node = self.get(domain, path, _WRITE)
        if domain and (node.permissions.owner != domain or permissions.owner != domain):
            raise StoreError("EPERM" if node.permissions.owner == domain else "EACCES")
        steps = split(path)
        if not steps:
            self.root = replace(self.root, permissions=permissions)
            return
        self._do(path, steps, lambda old: replace(old or Node(), permissions=permissions))


class Tree:
    """The store of one host."""

    def __init__(self) -> None:
        self.root = Node()
        self.watchers: list[Callable[[str, Node, Node], None]] = []
        """Each is told of a path that changed, with the trees before and after."""
        self.put("/local/domain/0", b"", Permissions((("r", 0),)))

    # -- from the hypervisor --------------------------------------------------------------------

    def put(self, path: str, value: bytes | str, permissions: Permissions | None = None) -> None:
        """Set a value from outside. Raises `StoreError` for a path that cannot be."""
        view = self.view()
        view.write(0, path, value.encode() if isinstance(value, str) else value)
        if permissions is not None:
            view.permit(0, path, permissions)
        self.settle(view)

    def value(self, path: str) -> str | None:
        """A value as text, or None where there is no such node."""
        try:
            node = find(self.root, split(path))
        except StoreError:
            return None
        return None if node is None else node.value.decode("ascii", "replace")

    def children(self, path: str) -> list[str]:
        """Names below a node, in their order."""
        node = find(self.root, split(path))
        return [] if node is None else list(node.children)

    def remove(self, path: str) -> None:
        """Remove a node from outside; harmless where there is none."""
        view = self.view()
        if find(self.root, split(path)) is not None:
            view.remove(0, path)
            self.settle(view)

    def tell(self, name: str) -> None:
        """Tell of something that is no node: a domain that comes or goes."""
        for watcher in list(self.watchers):
            watcher(name, self.root, self.root)

    # -- views ----------------------------------------------------------------------------------

    def view(self) -> View:
        """The tree as it is, to be changed and settled, or thrown away."""
        return View(self.root, self.root)

    def settle(self, view: View) -> bool:
        """Make a view's changes the store's, and tell of them; False where somebody changed what it had looked at."""
        before = self.root
        if before is not view.start:
            if any(_differs(find(view.start, list(path)), find(before, list(path))) for path in view.read_paths):
                return False
            for _path, steps, change in view.changes:
                if find(self.root, steps[:-1]) is None:
                    self.root = before
                    return False
                self.root = _changed(self.root, steps, change)
        else:
            self.root = view.root
        for path in dict.fromkeys(path for path, _steps, _change in view.changes):
            for watcher in list(self.watchers):
                watcher(path, before, self.root)
        return True


def _differs(one: Node | None, other: Node | None) -> bool:
    if one is other:
        return False
    return one is None or other is None or one.seen() != other.seen()


__all__ = ["Node", "Permissions", "StoreError", "Tree", "View", "find", "split"]
