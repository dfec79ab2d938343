"""The board for Arm guests: as QEMU's `virt`, without what a small guest does not need.

Room: `emulator/board`. Serial port, interrupt controller, generic timer and power interface, where QEMU has them, and
a device tree that says so. The processor's own side of it (system registers of the timer, HVC) is given to the
drivers as objects: `timer` and `psci`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from emulator.board.board import Shutdown, ShutdownKind, pass_time
from emulator.board.device_tree import Node, cells, flatten
from emulator.bus import MemoryBus
from emulator.clock import Clock, ClockState
from emulator.devices.arch_timer import ArchTimer, ArchTimerState
from emulator.devices.gicv2 import GicState, Gicv2
from emulator.devices.pl011 import Pl011, Pl011State
from emulator.devices.psci import Psci
from emulator.memory import GuestMemory

MEMORY_BASE = 0x4000_0000
"""Guest-physical address of the first byte of memory."""
GIC_DISTRIBUTOR, GIC_INTERFACE, GIC_WINDOW = 0x0800_0000, 0x0801_0000, 0x1_0000
UART, UART_SIZE, UART_IRQ = 0x0900_0000, 0x1000, 33
VIRTUAL_TIMER_IRQ, PHYSICAL_TIMER_IRQ = 27, 30
ADDRESS_BITS = 36

_CLOCK_HANDLE, _GIC_HANDLE = 0x8000, 0x8001
_SPI, _PPI, _HIGH, _ONE_CPU_HIGH = 0, 1, 4, 0x104
_FIRST_PPI, _FIRST_SPI = 16, 32


@dataclass(frozen=True, slots=True)
class VirtState:
    """All of the board's state but memory."""

    clock: ClockState
    uart: Pl011State
    gic: GicState
    timer: ArchTimerState
    shutdown: Shutdown | None


class Virt:
    """The board. `console` gets every byte that the guest transmits on the serial port."""

    def __init__(
        self,
        memory: GuestMemory,
        clock: Clock,
        *,
        console: Callable[[bytes], None],
        processor: str = "arm,cortex-a53",
        timer: tuple[str, ...] = ("arm,armv8-timer", "arm,armv7-timer"),
    ) -> None:
        """`processor` and `timer`: what the device tree says they are compatible with."""
        self.memory = memory
        self.clock = clock
        self.intr = False
        """The interrupt controller requests the CPU."""
        self.on_interrupt: Callable[[bool], None] | None = None
        self.shutdown: Shutdown | None = None
        """How the guest ended its run; None while it has not."""
        self._compatible = processor, timer
        self.gic = Gicv2(self._set_intr)
        self.uart = Pl011(console, self.gic.line(UART_IRQ))
        self.com1 = self.uart
        """The serial port under the name that it has on every board."""
        self.timer = ArchTimer(clock, self.gic.line(VIRTUAL_TIMER_IRQ), self.gic.line(PHYSICAL_TIMER_IRQ))
        self.psci = Psci(
            lambda: self._end(Shutdown(ShutdownKind.POWER_OFF)), lambda: self._end(Shutdown(ShutdownKind.RESET))
        )
        self.mmio = MemoryBus()
        """Device registers in guest-physical memory."""
        self.mmio.insert(GIC_DISTRIBUTOR, 0x1000, self.gic.distributor, width=4)
        self.mmio.insert(GIC_INTERFACE, 0x2000, self.gic.interface, width=4)
        self.mmio.insert(UART, UART_SIZE, self.uart, width=4)

    @property
    def device_space(self) -> tuple[tuple[int, int], ...]:
        """Everything that is not memory, as far as the processor's addresses go."""
        end = self.memory.end
        return ((0, self.memory.base), (end, (1 << ADDRESS_BITS) - end))

    # Towards the CPU

    def _set_intr(self, level: bool) -> None:
        self.intr = level
        if self.on_interrupt is not None:
            self.on_interrupt(level)

    def next_wake(self) -> int | None:
        """Virtual time in nanoseconds of the next event that can request the CPU as things are masked now."""
        events = zip((VIRTUAL_TIMER_IRQ, PHYSICAL_TIMER_IRQ), self.timer.due(), strict=True)
        return min((when for irq, when in events if when is not None and self.gic.would_request(irq)), default=None)

    def idle(self) -> bool:
        """The CPU waits: let time jump until an interrupt is requested; False when only input can wake it."""
        return pass_time(self, self.clock)

    # Towards the world

    def feed_console(self, data: bytes) -> None:
        """Bytes arrive at the serial port."""
        self.uart.feed(data)

    def _end(self, shutdown: Shutdown) -> None:
        if self.shutdown is None:
            self.shutdown = shutdown

    # Towards the kernel

    def device_tree(self, command_line: str, initrd: tuple[int, int] = (0, 0), seed: bytes = b"") -> bytes:
        """The flattened device tree. `initrd` is its first address and the one behind it; `seed` is for the guest's
        random number generator."""
        chosen = Node("chosen", {"bootargs": command_line, "stdout-path": f"/pl011@{UART:x}"})
        if initrd[1] > initrd[0]:
            chosen.properties |= {"linux,initrd-start": cells(initrd[0]), "linux,initrd-end": cells(initrd[1])}
        if seed:
            chosen.properties["rng-seed"] = seed
        memory = Node(
            f"memory@{self.memory.base:x}",
            {"device_type": "memory", "reg": (*cells(self.memory.base), *cells(self.memory.size))},
        )
        root = Node(
            "",
            {
                "interrupt-parent": _GIC_HANDLE,
                "#size-cells": 2,
                "#address-cells": 2,
                "compatible": "linux,dummy-virt",
                "model": "linux,dummy-virt",
            },
            [_psci(), memory, self._processors(), self._timer(), _apb_clock(), _uart(), _gic(), chosen],
        )
        return flatten(root)

    def _processors(self) -> Node:
        cpu = Node("cpu@0", {"device_type": "cpu", "compatible": self._compatible[0], "reg": 0})
        return Node("cpus", {"#address-cells": 1, "#size-cells": 0}, [cpu])

    def _timer(self) -> Node:
        secure, hypervisor = 29, 26
        lines = (secure, PHYSICAL_TIMER_IRQ, VIRTUAL_TIMER_IRQ, hypervisor)
        interrupts = tuple(cell for line in lines for cell in (_PPI, line - _FIRST_PPI, _ONE_CPU_HIGH))
        return Node("timer", {"compatible": self._compatible[1], "always-on": None, "interrupts": interrupts})

    # State

    @property
    def state(self) -> VirtState:
        """Clock and devices, without memory."""
        return VirtState(self.clock.state, self.uart.state, self.gic.state, self.timer.state, self.shutdown)

    def restore(self, state: VirtState) -> None:
        """Take up an earlier state. The clock forgets all callbacks; the timer schedules its own anew."""
        self.clock.restore(state.clock)
        self.uart.restore(state.uart)
        self.timer.restore(state.timer)
        self.gic.restore(state.gic)  # last: it holds the lines that the devices have just driven
        self.shutdown = state.shutdown

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of `state`."""
        return hashlib.sha256(repr(self.state).encode()).hexdigest()


def _psci() -> Node:
    return Node("psci", {"compatible": ("arm,psci-1.0", "arm,psci-0.2", "arm,psci"), "method": "hvc"})


def _apb_clock() -> Node:
    return Node(
        "apb-pclk",
        {
            "compatible": "fixed-clock",
            "#clock-cells": 0,
            "clock-frequency": 24_000_000,
            "clock-output-names": "clk24mhz",
            "phandle": _CLOCK_HANDLE,
        },
    )


def _uart() -> Node:
    return Node(
        f"pl011@{UART:x}",
        {
            "compatible": ("arm,pl011", "arm,primecell"),
            "reg": (*cells(UART), *cells(UART_SIZE)),
            "interrupts": (_SPI, UART_IRQ - _FIRST_SPI, _HIGH),
            "clocks": (_CLOCK_HANDLE, _CLOCK_HANDLE),
            "clock-names": ("uartclk", "apb_pclk"),
        },
    )


def _gic() -> Node:
    return Node(
        f"intc@{GIC_DISTRIBUTOR:x}",
        {
            "compatible": "arm,cortex-a15-gic",
            "#interrupt-cells": 3,
            "interrupt-controller": None,
            "#address-cells": 2,
            "#size-cells": 2,
            "ranges": None,
            "reg": (*cells(GIC_DISTRIBUTOR), *cells(GIC_WINDOW), *cells(GIC_INTERFACE), *cells(GIC_WINDOW)),
            "phandle": _GIC_HANDLE,
        },
    )
