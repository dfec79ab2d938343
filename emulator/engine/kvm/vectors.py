"""Vector state beyond x87 and SSE, which user code may hold although its kernel was told of no such thing.

Room: `emulator/engine/kvm`. On a host where AVX works with CR4.OSXSAVE clear, a kernel that saves by FXSAVE leaves the
upper halves of vector registers to whoever runs next. Here they are taken and put back, apart from what FXSAVE knows.
Layout: Intel SDM volume 1, 13.4, standard format.
"""

import fcntl
import struct
from typing import Final

from emulator.engine.kvm import api

_SIZE: Final = 4096
_COMPONENTS: Final = 512
"""Offset of XSTATE_BV: which components are not in their initial state."""
_EXTENDED: Final = 576
_LEGACY: Final = 3
"""Components x87 and SSE."""


def take(cpu: int) -> bytes:
    """The extended part of the processor's state: XSTATE_BV without x87 and SSE, then the components. Empty when all
    are in their initial state."""
    area = bytearray(_SIZE)
    fcntl.ioctl(cpu, api.GET_XSAVE, area, True)
    (components,) = struct.unpack_from("<Q", area, _COMPONENTS)
    if not components & ~_LEGACY:
        return b""
    return struct.pack("<Q", components & ~_LEGACY) + bytes(area[_EXTENDED:])


def put(cpu: int, state: bytes) -> None:
    """Give the processor an extended part that `take` gave; x87 and SSE stay as they are. Raises `ValueError` for what
    is none, or is another processor's."""
    if state and not 8 < len(state) <= 8 + _SIZE - _EXTENDED:
        raise ValueError(f"vector state of {len(state)} bytes: a processor has {8 + _SIZE - _EXTENDED} at most")
    area = bytearray(_SIZE)
    fcntl.ioctl(cpu, api.GET_XSAVE, area, True)
    (components,) = struct.unpack_from("<Q", area, _COMPONENTS)
    kept = components & _LEGACY
    if not state and kept == components:
        return
    wanted = struct.unpack_from("<Q", state)[0] if state else 0
    struct.pack_into("<Q", area, _COMPONENTS, kept | wanted)
    area[_EXTENDED:] = state[8:].ljust(_SIZE - _EXTENDED, b"\0")
    try:
        fcntl.ioctl(cpu, api.SET_XSAVE, area, True)
    except OSError:
        raise ValueError(f"the host's processor has not the vector registers that were saved ({wanted:#x})") from None
