"""The platforms there are, by instruction set: the one place that knows which board and boot protocol go with which.

Room: `emulator`. A `Platform` is data and ways to load code, so that a run loads one platform's board and devices and
no other's. Engines are in `emulator.engine.engines`, by the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emulator.errors import BadImage

if TYPE_CHECKING:
    from emulator.board.board import Board
    from emulator.board.boot import BootImage
    from emulator.clock import Clock
    from emulator.memory import GuestMemory

SEED = bytes(range(32))
"""What the boot protocol hands to the guest's random number generator: the same in every run."""


@dataclass(frozen=True, slots=True)
class Platform:
    """A board for one instruction set, and how a kernel is put on it."""

    isa: str
    """Name of the instruction set in `emulator.isa.isas`."""
    board: str
    """Name of the board, for people."""
    make_board: Callable[[GuestMemory, Clock, Callable[[bytes], None]], Board]
    """Makes the board around memory and clock; the third gets what the guest prints."""
    place: Callable[[Board, GuestMemory, BootImage], Any]
    """Puts a kernel into memory that is still zero; gives the state of the CPU at its entry, which the drivers of
    this instruction set understand. Raises `BootError`."""
    memory_base: int = 0
    """Guest-physical address of the first byte of memory, in whole pages."""


def _make_pc(memory: GuestMemory, clock: Clock, console: Callable[[bytes], None]) -> Board:
    from emulator.board.pc import Pc

    return Pc(memory, clock, console=console)


def _place_on_pc(_board: Board, memory: GuestMemory, image: BootImage) -> Any:
    from emulator.board.linux_boot import place

    return place(memory, image, mp_table=True, seed=SEED)


def _place_on_32_bit_pc(_board: Board, memory: GuestMemory, image: BootImage) -> Any:
    from emulator.board.linux_boot import place

    return place(memory, image, mp_table=True, seed=SEED, bits=32)


def _make_arm(memory: GuestMemory, clock: Clock, console: Callable[[bytes], None]) -> Board:
    from emulator.board.arm_boot import make_board

    return make_board(memory, clock, console)


def _place_on_arm(board: Any, memory: GuestMemory, image: BootImage) -> Any:
    from emulator.board.arm_boot import place

    return place(board, memory, image, SEED)


def _make_malta(memory: GuestMemory, clock: Clock, console: Callable[[bytes], None]) -> Board:
    from emulator.board.malta import Malta

    return Malta(memory, clock, console=console)


def _place_on_malta(board: Any, memory: GuestMemory, image: BootImage) -> Any:
    from emulator.board.malta_boot import place

    board.fpga.big_endian = big = image.byte_order == "big"
    return place(memory, image, big_endian=big)


def _make_virt(memory: GuestMemory, clock: Clock, console: Callable[[bytes], None]) -> Board:
    from emulator.board.virt import Virt

    return Virt(memory, clock, console=console)


PLATFORMS: dict[str, Platform] = {
    platform.isa: platform
    for platform in (
        Platform("x86-64", "pc", _make_pc, _place_on_pc),
        Platform("i386", "pc", _make_pc, _place_on_32_bit_pc),
        Platform("mips32", "malta", _make_malta, _place_on_malta),
        Platform("armv7", "virt", _make_arm, _place_on_arm, 0x4000_0000),
        Platform("aarch64", "virt", _make_virt, _place_on_arm, 0x4000_0000),
    )
}
"""Every platform by the name of its instruction set."""


def platform_of(isa: str) -> Platform:
    """The platform of an instruction set. Raises `BadImage` where there is none."""
    platform = PLATFORMS.get(isa)
    if platform is None:
        raise BadImage(f"there is no machine for {isa} guests yet; those of {', '.join(PLATFORMS)} can be run")
    return platform
