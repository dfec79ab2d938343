"""The x87 and SSE state of a KVM processor as one value: the 512 bytes that FXSAVE stores in 64-bit mode.

Room: `emulator/engine/kvm`. What lies behind them, the vector state that guests are not told of, is `vectors`'.
Layout: Intel SDM volume 1, 13.4, standard format: its first part is FXSAVE's.
"""

import fcntl
import struct
from typing import Final

from emulator.engine.kvm import api

SIZE: Final = 512
_AREA: Final = 4096
_COMPONENTS: Final = 512
_LEGACY: Final = 3
"""Components x87 and SSE."""
_INITIAL_CONTROL, _MXCSR, _INITIAL_MXCSR, _MXCSR_MASK = 0x37F, 24, 0x1F80, 0xFFFF
_XMM: Final = 160
_XMM_END: Final = 416


def take(cpu: int) -> bytes:
    """The image; a component in its initial state reads as that."""
    area = bytearray(_AREA)
    fcntl.ioctl(cpu, api.GET_XSAVE, area, True)
    (components,) = struct.unpack_from("<Q", area, _COMPONENTS)
    image = area[:SIZE]
    if not components & 1:
        head = bytes(image[_MXCSR : _MXCSR + 4])
        image[:_XMM] = struct.pack("<H", _INITIAL_CONTROL).ljust(_XMM, b"\0")
        image[_MXCSR : _MXCSR + 4] = head
    if not components & 2:
        image[_XMM:_XMM_END] = bytes(_XMM_END - _XMM)
        struct.pack_into("<I", image, _MXCSR, _INITIAL_MXCSR)
    struct.pack_into("<I", image, _MXCSR + 4, _MXCSR_MASK)
    image[_XMM_END:] = bytes(SIZE - _XMM_END)
    return bytes(image)


def put(cpu: int, image: bytes) -> None:
    """Put an image back. Raises `ValueError` for one of another size."""
    if len(image) != SIZE:
        raise ValueError(f"a floating-point state of {len(image)} bytes: FXSAVE's has {SIZE}")
    area = bytearray(_AREA)
    fcntl.ioctl(cpu, api.GET_XSAVE, area, True)
    (components,) = struct.unpack_from("<Q", area, _COMPONENTS)
    (mask,) = struct.unpack_from("<I", area, _MXCSR + 4)
    area[:SIZE] = image
    struct.pack_into("<I", area, _MXCSR, struct.unpack_from("<I", image, _MXCSR)[0] & (mask or _MXCSR_MASK))
    struct.pack_into("<I", area, _MXCSR + 4, mask)
    struct.pack_into("<Q", area, _COMPONENTS, components | _LEGACY)
    fcntl.ioctl(cpu, api.SET_XSAVE, area, True)
