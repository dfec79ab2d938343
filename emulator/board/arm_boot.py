"""How a Linux kernel for ARMv7 is put on the `virt` board (Linux Documentation/arch/arm/booting.rst).

Room: `emulator/board`. Kernel where its image says, initramfs and device tree behind it, in memory that the kernel maps
from the beginning. The processor is entered in Supervisor mode with the MMU off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emulator.board.boot import BootError, BootImage
from emulator.board.virt import Virt
from emulator.clock import Clock
from emulator.memory import GuestMemory

PHYSICAL_END = 0xC000_0000
"""Guest-physical addresses end here: a hypervisor has the rest of what short descriptors reach."""
UART_CONTROL, UART_READY = 0x30, 0x301
"""The serial port's control register, and what firmware leaves there: on, both directions."""
_ALIGN = 1 << 20
_TREE_ROOM = 1 << 16
_LOW_MEMORY = 700 << 20
"""Bytes of memory that every kernel maps directly."""


@dataclass(frozen=True, slots=True)
class ArmEntry:
    """The processor at the kernel's entry; everything else is zero."""

    pc: int
    device_tree: int
    """Guest-physical address, in R2."""


class ArmVirt(Virt):
    """The board with 32-bit addresses."""

    @property
    def device_space(self) -> tuple[tuple[int, int], ...]:
        """Everything that is not memory, as far as guests' addresses go."""
        return ((0, self.memory.base), (self.memory.end, PHYSICAL_END - self.memory.end))


def make_board(memory: GuestMemory, clock: Clock, console: Callable[[bytes], None]) -> ArmVirt:
    """The board around memory and clock. Raises `BootError` for more memory than it has room for."""
    if memory.end >= PHYSICAL_END:
        raise BootError(f"{memory.size >> 20} MiB of memory are more than the 2 GiB that the board has room for")
    return ArmVirt(memory, clock, console=console, processor="arm,cortex-a7", timer=("arm,armv7-timer",))


def place(board: Virt, memory: GuestMemory, image: BootImage, seed: bytes) -> ArmEntry:
    """Put kernel, initramfs and device tree into memory. Raises `BootError` where they find no room."""
    end = memory.base
    for segment in image.segments:
        if not memory.base <= segment.physical <= memory.end - segment.memory_size:
            raise BootError(
                f"the kernel wants {segment.memory_size >> 10} KiB at {segment.physical:#x}, and memory is "
                f"{memory.base:#x} to {memory.end:#x}: give the guest more"
            )
        memory.write_bytes(segment.physical, segment.data)
        end = max(end, segment.physical + segment.memory_size)
    initrd = _up(end)
    tree = _up(initrd + len(image.initrd))
    if tree + _TREE_ROOM > min(memory.end, memory.base + _LOW_MEMORY):
        raise BootError(
            f"kernel and initramfs of {len(image.initrd) >> 20} MiB leave no room in {memory.size >> 20} MiB of memory:"
            " give the guest more"
        )
    board.uart.write(UART_CONTROL, 4, UART_READY)
    if image.initrd:
        memory.write_bytes(initrd, image.initrd)
    contents = board.device_tree(image.command_line, (initrd, initrd + len(image.initrd)), seed)
    if len(contents) > _TREE_ROOM:
        raise BootError(f"the device tree has {len(contents)} bytes: give a shorter command line")
    memory.write_bytes(tree, contents)
    return ArmEntry(image.entry, tree)


def _up(address: int) -> int:
    return (address + _ALIGN - 1) & -_ALIGN
