"""Exits of the KVM engine that are no traps: ports, devices in memory, and what KVM cannot execute.

Room: `emulator/engine/kvm`. An IN or a load from a device is finished by KVM when the guest is entered next; until then
its registers must not be touched.
"""

import fcntl
import struct
from typing import Final

from emulator.engine.exit import ExitKind
from emulator.engine.kvm import api
from emulator.engine.kvm.processor import KvmProcessor
from emulator.engine.protocol import Handler
from emulator.errors import GuestFault

_unpack_io = struct.Struct("<BBHIQ").unpack_from
_unpack_mmio = struct.Struct("<Q8sIB").unpack_from
_ENTRY = struct.Struct("<QIIQ").unpack_from
_BURST: Final = 4
"""Bytes in a row to one port that are worth offering at once."""


class Accesses(KvmProcessor):
    """What the processor does with ports and devices."""

    def _other(self, reason: int, handler: Handler) -> None:
        if reason == api.EXIT_IO:
            self._port(handler)
        elif reason == api.EXIT_MMIO:
            self._device()
        elif reason == api.EXIT_INTR:
            self._interrupted()
        elif reason == api.EXIT_INTERNAL_ERROR:
            self._lost_fetch(handler)
        else:
            raise GuestFault(f"the engine lost the guest at {self._words[api.W_RIP]:#x}: KVM exit {reason}")

    def _port(self, handler: Handler) -> None:
        """IN, OUT, INS or OUTS, while ports are open. KVM has moved RIP over OUT already."""
        write, size, port, count, offset = _unpack_io(self._bytes, api.B_UNION)
        self._get()
        self._dirty = False
        self._incomplete = True
        exit_, data = self._exit, self._bytes
        for at in range(offset, offset + size * count, size):
            exit_.port, exit_.size, exit_.refused = port, size, False
            if write:
                exit_.kind = ExitKind.PORT_WRITE
                exit_.value = int.from_bytes(data[at : at + size], "little")
                handler(exit_)
            else:
                exit_.kind, exit_.value = ExitKind.PORT_READ, 0
                handler(exit_)
                data[at : at + size] = (exit_.value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def _device(self) -> None:
        """A load or store where no memory is. KVM goes on when it is entered again."""
        physical, data, size, write = _unpack_mmio(self._bytes, api.B_UNION)
        found = self._vm.device_at(physical)
        self._get()
        self._dirty = False
        self._incomplete = True
        if found is None:
            if not write:
                self._bytes[api.B_UNION + 8 : api.B_UNION + 8 + size] = b"\xff" * size
            return
        first, _, reads, writes = found
        if write:
            writes(physical - first, size, int.from_bytes(data[:size], "little"))
        else:
            value = reads(physical - first, size) & (1 << 8 * size) - 1
            self._bytes[api.B_UNION + 8 : api.B_UNION + 8 + size] = value.to_bytes(size, "little")

    def _complete(self, handler: Handler) -> None:
        """Have KVM finish the IN or device access under way, without running the guest."""
        self._bytes[api.IMMEDIATE_EXIT] = 1
        try:
            while self._incomplete:
                try:
                    fcntl.ioctl(self._vm.cpu, api.RUN, 0)
                except InterruptedError:
                    self._incomplete = False
                else:
                    self._other(self._halves[api.H_EXIT_REASON], handler)
                self._words[api.W_DIRTY] = 0
        finally:
            self._bytes[api.IMMEDIATE_EXIT] = 0
        self._get()

    def _lost_fetch(self, handler: Handler) -> None:
        """KVM cannot go on: code would have to come from a device or from nowhere."""
        self._get()
        code = self._traps.code()
        if code:
            suberror = self._halves[api.B_UNION // 4]
            raise GuestFault(
                f"the engine lost the guest at {self.registers.rip:#x}: KVM cannot execute {code.hex()} "
                f"(internal error {suberror})"
            )
        exit_ = self._exit
        exit_.kind, exit_.address = ExitKind.UNBACKED, self.registers.rip
        handler(exit_)

    def _row(self, first: int, last: int, count: int) -> tuple[int, bytes]:
        """What the ring of `count` entries has from `first` on, before `last`: bytes written to one port in a row, and
        that port."""
        ring, data = self._ring, bytearray()
        assert ring is not None
        port, size, _, value = _ENTRY(ring, 8 + first * api.COALESCED_RING_BYTES)
        same = port
        while (same, size) == (port, 1):
            data.append(value & 0xFF)
            first = (first + 1) % count
            if first == last:
                break
            same, size, _, value = _ENTRY(ring, 8 + first * api.COALESCED_RING_BYTES)
        return port, bytes(data)

    def _hand_up_posted(self, handler: Handler) -> None:
        """Port writes that KVM collected, before what came behind them."""
        ring = self._ring
        assert ring is not None
        first, last = struct.unpack_from("<II", ring)
        if first == last:
            return
        count = (len(ring) - 8) // api.COALESCED_RING_BYTES
        exit_, burst = self._exit, self._burst
        while first != last:
            if burst is not None:
                port, data = self._row(first, last, count)
                if len(data) >= _BURST:
                    if burst(port, data):
                        first = (first + len(data)) % count
                        struct.pack_into("<I", ring, 0, first)
                        continue
                    burst = None
            port, size, _, value = _ENTRY(ring, 8 + first * api.COALESCED_RING_BYTES)
            exit_.kind, exit_.port, exit_.size, exit_.refused = ExitKind.PORT_WRITE, port, size, False
            exit_.late = True
            exit_.value = value & (1 << 8 * size) - 1
            first = (first + 1) % count
            struct.pack_into("<I", ring, 0, first)
            handler(exit_)
        exit_.late = False
