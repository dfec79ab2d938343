"""Machine code of the hypervisor's own for the kernel's view, put together from bytes.

Room: `paravirt/modes/x86`, for `user_faults` and `user_returns`.
"""

import struct

from paravirt import abi


class MachineCode:
    """Machine code with places to jump to."""

    def __init__(self) -> None:
        self.code = bytearray()
        self._jumps: list[tuple[int, str]] = []
        self.places: dict[str, int] = {}

    def plain(self, text: str, *operands: bytes) -> None:
        """Bytes as they are."""
        self.code += bytes.fromhex(text) + b"".join(operands)

    def shared(self, text: str, offset: int, *behind: bytes) -> None:
        """An instruction with a word of the shared page as its operand."""
        self.plain(text, half(abi.SHARED_PAGE + offset), *behind)

    def jump(self, text: str, place: str) -> None:
        """A jump with a distance of 32 bits."""
        self.code += bytes.fromhex(text) + bytes(4)
        self._jumps.append((len(self.code), place))

    def here(self, place: str) -> None:
        """Jumps to this name lead here."""
        self.places[place] = len(self.code)

    def finish(self) -> bytes:
        """The code, its jumps filled in."""
        for behind, place in self._jumps:
            struct.pack_into("<i", self.code, behind - 4, self.places[place] - behind)
        return bytes(self.code)


def half(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFF_FFFF)


def whole(value: int) -> bytes:
    return struct.pack("<Q", value & 0xFFFF_FFFF_FFFF_FFFF)
