"""Which writes to a device say what a guest wants of it, and which only follow the passing of time.

Room: `bt/verify`. One function a device, named in the tables of rules; offsets and bits are those of the data sheets
(Intel 8259A, 8254; Motorola MC146818A; National PC16550D; Arm's GICv2 and PL011).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bt.verify.observation import Write

_ICW1, _OCW3 = 0x10, 0x08
_OCW3_SETS: Final = _OCW3 | 0x40
"""OCW3 by which the special mask mode is set or left."""
_INITIALISATION_WORDS: Final = 4
_PIT_CONTROL: Final = 3
_GICC_EOIR, _GICC_DIR = 0x10, 0x1000
_GICD_ENABLES, _GICD_PENDINGS = 0x100, 0x200
_UARTDR, _UARTCR, _UARTIMSC, _UARTICR = 0x00, 0x30, 0x38, 0x44
_COUNTER_LATCH, _READ_BACK = 0x30, 0xC0


def interrupt_controller(writes: Sequence[Write]) -> list[Write]:
    """An 8259's writes without OCW2, by which interrupts are ended, and OCW3 that says only what is read next."""
    return [write for write in writes if write.offset or write.value & _ICW1 or write.value & _OCW3_SETS == _OCW3_SETS]


def interrupt_controller_setup(writes: Sequence[Write]) -> list[Write]:
    """An 8259's writes while it is set up: up to its last initialisation word."""
    last = max((index for index, write in enumerate(writes) if not write.offset and write.value & _ICW1), default=-1)
    return list(writes[: last + _INITIALISATION_WORDS]) if last >= 0 else []


def timer(writes: Sequence[Write]) -> list[Write]:
    """An 8254's writes without commands that only latch a count to be read."""
    return [write for write in writes if write.offset != _PIT_CONTROL or not _only_reads(write.value)]


def _only_reads(command: int) -> bool:
    return command & _READ_BACK == _READ_BACK or command & _COUNTER_LATCH == 0


def clock_chip(writes: Sequence[Write]) -> list[Write]:
    """The clock chip's writes without an index that only reads followed."""
    return [
        write
        for write, following in zip(writes, [*writes[1:], None], strict=False)
        if write.offset or (following is not None and following.offset)
    ]


def serial_setup(writes: Sequence[Write]) -> list[Write]:
    """A serial port's writes without characters, divisors and interrupt enables (offsets 0 and 1)."""
    return [write for write in writes if write.offset > 1]


def left_out(_writes: Sequence[Write]) -> list[Write]:
    """Nothing of a device that is only written to pass the time."""
    return []


def gic_interface(writes: Sequence[Write]) -> list[Write]:
    """A GIC's CPU interface's writes without those by which interrupts are ended (GICC_EOIR, GICC_DIR)."""
    return [write for write in writes if write.offset not in (_GICC_EOIR, _GICC_DIR)]


def gic_setup(writes: Sequence[Write]) -> list[Write]:
    """A GIC's distributor's writes without those that mask and unmask single interrupts (GICD_ISENABLER, ICENABLER)."""
    return [write for write in writes if not _GICD_ENABLES <= write.offset < _GICD_PENDINGS]


def pl011_setup(writes: Sequence[Write]) -> list[Write]:
    """A PL011's writes without characters, interrupt enables and acknowledgements, and without its control register,
    which a console writes before and after whatever lines it prints at once."""
    return [write for write in writes if write.offset not in (_UARTDR, _UARTCR, _UARTIMSC, _UARTICR)]
