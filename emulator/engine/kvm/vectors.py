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
_components = struct.Struct("<Q").unpack_from


class ExtendedState:
    """The extended part of one processor. Looking at it takes two thirds of an exit where KVM is software: so
    what was seen is kept until the guest has run."""

    def __init__(self, cpu: int) -> None:
        self._cpu = cpu
        self._area = bytearray(_SIZE)
        self._seen = -1

    def forget(self) -> None:
        """The state was changed by another way."""
        self._seen = -1

    def _look(self, now: int) -> int:
        """Have the state of now in the area; which components are not in their initial state."""
        if self._seen != now:
            fcntl.ioctl(self._cpu, api.GET_XSAVE, self._area, True)
            self._seen = now
        return int(_components(self._area, _COMPONENTS)[0])

    def take(self, now: int) -> bytes:
        """The extended part of the processor's state: XSTATE_BV without x87 and SSE, then the components. Empty when
        all are in their initial state. `now` is another number whenever the guest may have run."""
        components = self._look(now) & ~_LEGACY
        return components.to_bytes(8, "little") + self._area[_EXTENDED:] if components else b""

    def put(self, state: bytes, now: int) -> None:
        """Give the processor an extended part that `take` gave; x87 and SSE stay as they are. Raises `ValueError` for
        what is none, or is another processor's."""
        if state and not 8 < len(state) <= 8 + _SIZE - _EXTENDED:
            raise ValueError(f"vector state of {len(state)} bytes: a processor has {8 + _SIZE - _EXTENDED} at most")
        components, area = self._look(now), self._area
        kept = components & _LEGACY
        if not state and kept == components:
            return
        wanted = _components(state)[0] if state else 0
        struct.pack_into("<Q", area, _COMPONENTS, kept | wanted)
        area[_EXTENDED:] = state[8:].ljust(_SIZE - _EXTENDED, b"\0")
        try:
            fcntl.ioctl(self._cpu, api.SET_XSAVE, area, True)
        except OSError:
            self.forget()
            raise ValueError(
                f"the host's processor has not the vector registers that were saved ({wanted:#x})"
            ) from None
