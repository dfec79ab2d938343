"""Guest-virtual memory as a hypercall's pointers name it: read and written through the tables that the processor walks.

Room: `paravirt/xen`. Nothing that a guest names is trusted: an address in the hypervisor's part, one that is not
mapped, or a write to what the guest may not write is refused (`EFAULT`). Tables are the machine's, every frame in them
validated.
"""

from __future__ import annotations

from paravirt.xen.public import HYPERVISOR_END, HYPERVISOR_START, Errno, XenError

_FRAME = 0x000F_FFFF_FFFF_F000
_MASK = (1 << 64) - 1
_CANONICAL = 1 << 47
_MOST_ROOTS = 16
"""Roots of which translations are kept at a time."""


class NotMapped(XenError):
    """There is no way to guest-virtual `address` for such an access."""

    def __init__(self, address: int, write: bool, present: bool) -> None:
        super().__init__(Errno.EFAULT)
        self.address = address
        self.write = write
        self.present = present


class GuestAccess:
    """One virtual CPU's view of memory."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.words = view.cast("Q")
        self.words32 = view.cast("I")
        self.root = 0
        """Machine address of the root that is walked."""
        self.readable: dict[int, int] = {}
        """Machine addresses of pages by their numbers, as far as they are known, of the root that is walked."""
        self.writable: dict[int, int] = {}
        self._roots: dict[int, tuple[dict[int, int], dict[int, int]]] = {0: (self.readable, self.writable)}
        """What is known of other roots, which comes back with them."""
        self.leaves: set[int] = set()
        """Last-level entries, by their index among all words, that what is kept of translations was read from."""

    def use_root(self, root: int) -> None:
        """Another root is walked from now on, as it was when it was last walked or since the last `forget`."""
        self.root = root
        known = self._roots.get(root)
        if known is None:
            if len(self._roots) == _MOST_ROOTS:
                self._roots.clear()
                self.leaves.clear()
            known = self._roots[root] = {}, {}
        self.readable, self.writable = known

    def known(self) -> list[tuple[int, tuple[dict[int, int], dict[int, int]]]]:
        """What is kept, by root: machine addresses of pages that can be read, and written."""
        return list(self._roots.items())

    def forget(self) -> None:
        """Tables were changed."""
        if self.leaves:
            for readable, writable in self._roots.values():
                readable.clear()
                writable.clear()
            self._roots = {self.root: (self.readable, self.writable)}
            self.leaves.clear()

    def entry_address(self, address: int) -> int:
        """Machine address of the last-level entry of guest-virtual `address`. Raises `NotMapped`."""
        if not 0 <= address < _CANONICAL and not HYPERVISOR_END <= address <= _MASK:
            raise NotMapped(address, False, False)
        words, table = self.words, self.root
        for shift in (39, 30, 21):
            entry = words[(table >> 3) + (address >> shift & 511)]
            if not entry & 1:
                raise NotMapped(address, False, False)
            table = entry & _FRAME
        return table + (address >> 9 & 0xFF8)

    def translate(self, address: int, write: bool = False) -> int:
        """Machine address of guest-virtual `address`. Raises `NotMapped`."""
        known = (self.writable if write else self.readable).get(address >> 12)
        if known is not None:
            return known | address & 0xFFF
        if not 0 <= address < _CANONICAL and not HYPERVISOR_END <= address <= _MASK:
            raise NotMapped(address, write, False)
        words, table, rights = self.words, self.root, 7
        for shift in (39, 30, 21, 12):
            place = (table >> 3) + (address >> shift & 511)
            entry = words[place]
            if not entry & 1:
                raise NotMapped(address, write, False)
            rights &= entry
            table = entry & _FRAME
        if not rights & 4 or (write and not rights & 2):
            raise NotMapped(address, write, True)
        self.leaves.add(place)
        self.readable[address >> 12] = table
        if rights & 2:
            self.writable[address >> 12] = table
        return table | address & 0xFFF

    def read(self, address: int, size: int) -> bytes:
        """Bytes at guest-virtual `address`. Raises `NotMapped`."""
        at = self.translate(address)
        if (address & 0xFFF) + size <= 4096:
            return bytes(self.view[at : at + size])
        parts = []
        while size:
            step = min(size, 4096 - (address & 0xFFF))
            at = self.translate(address)
            parts.append(bytes(self.view[at : at + step]))
            address, size = address + step & _MASK, size - step
        return b"".join(parts)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes at guest-virtual `address`: all, or none. Raises `NotMapped`."""
        size, done = len(data), 0
        places = []
        while done < size:
            step = min(size - done, 4096 - (address + done & 0xFFF))
            places.append((self.translate(address + done & _MASK, True), done, step))
            done += step
        for at, start, step in places:
            self.view[at : at + step] = data[start : start + step]

    def read_word(self, address: int, size: int = 8) -> int:
        """A little-endian number."""
        return int.from_bytes(self.read(address, size), "little")

    def write_word(self, address: int, value: int, size: int = 8) -> None:
        """Store a little-endian number."""
        self.write(address, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))


def in_hypervisor(address: int) -> bool:
    """Whether an address is in the part of a root that is the hypervisor's."""
    return HYPERVISOR_START <= address < HYPERVISOR_END
