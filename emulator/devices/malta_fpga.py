"""The registers of the Malta board itself: revision, switches, a display, and the reset button for software.

Room: `emulator/devices`. Offsets are those of the Malta User's Manual (MD00048), chapter 4: two windows, the FPGA's at
1F000000H and the revision at 1FC00010H.
"""

from collections.abc import Callable
from dataclasses import dataclass

SWITCH, STATUS, JUMPERS, LEDS = 0x200, 0x208, 0x210, 0x408
DISPLAY, DISPLAY_END = 0x410, 0x450
SOFT_RESET, BREAK_RESET = 0x500, 0x508
GO_RESET = 0x42
LITTLE_ENDIAN_STATUS, BIG_ENDIAN_STATUS = 0x10, 0x12
REVISION = 0x420
"""Board revision 0, core board CoreLV: a GT-64120."""


@dataclass(frozen=True, slots=True)
class FpgaState:
    """What was written, and how the board's switch stands."""

    leds: int
    text: bytes
    break_reset: int
    big_endian: bool


class MaltaFpga:
    """`reset` is called when software asks for it."""

    name = "malta-fpga"

    def __init__(self, reset: Callable[[], None], *, big_endian: bool = False) -> None:
        self._reset = reset
        self.big_endian = big_endian
        """How the board's switch says that the processor is."""
        self._leds = 0
        self._text = bytearray(8)
        self._break_reset = 0x0A

    def read(self, offset: int, size: int) -> int:
        """A register; what has none reads as 0."""
        status = BIG_ENDIAN_STATUS if self.big_endian else LITTLE_ENDIAN_STATUS
        return {STATUS: status, LEDS: self._leds, BREAK_RESET: self._break_reset}.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """LEDs, display, reset."""
        if offset == SOFT_RESET and value & 0xFF == GO_RESET:
            self._reset()
        elif offset == LEDS:
            self._leds = value & 0xFF
        elif offset == BREAK_RESET:
            self._break_reset = value & 0xFF
        elif DISPLAY + 8 <= offset < DISPLAY_END + 8:
            self._text[(offset - DISPLAY - 8) // 8] = value & 0xFF

    @property
    def state(self) -> FpgaState:
        """What was written, and the switch."""
        return FpgaState(self._leds, bytes(self._text), self._break_reset, self.big_endian)

    def restore(self, state: FpgaState) -> None:
        """Take up an earlier state. Raises `ValueError` for a display of another width."""
        if len(state.text) != len(self._text):
            raise ValueError(f"a display of {len(state.text)} characters")
        self._leds, self._break_reset, self.big_endian = state.leds, state.break_reset, state.big_endian
        self._text[:] = state.text


class Revision:
    """The revision register, in the place of the boot ROM."""

    name = "malta-revision"
    state = None

    def read(self, offset: int, size: int) -> int:
        """The board's revision; the ROM itself is empty."""
        return REVISION if offset == 0 else (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing can be written."""

    def restore(self, state: None) -> None:
        """There is nothing."""
