"""The descriptor tables the real processor uses for a deprivileged 32-bit guest.

Room: `paravirt/modes/i386`. As `paravirt.modes.x86.descriptors`; besides, no segment keeps the bit that is
meaningless in 32-bit mode and would take user code from compatibility mode to 64-bit mode.
"""

from paravirt.modes.x86.descriptors import DescriptorCopy, sanitise

_LONG = 1 << 53
_CODE = 1 << 43


class DescriptorCopy32(DescriptorCopy):
    """The sanitised copy of one guest's GDT."""

    def _clean(self, source: bytes) -> bytes:
        out = bytearray(sanitise(source))
        for at in range(8, len(out) - 7, 8):
            descriptor = int.from_bytes(out[at : at + 8], "little")
            if descriptor & _LONG and descriptor & _CODE:
                out[at : at + 8] = (descriptor & ~_LONG).to_bytes(8, "little")
        return bytes(out)
