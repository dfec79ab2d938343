"""The board for Arm guests: devices where its device tree says, interrupts, time that jumps, state."""

import struct

import pytest

from emulator.board import virt as v
from emulator.board.board import Shutdown, ShutdownKind
from emulator.board.device_tree import MAGIC, Node, cells, flatten
from emulator.clock import Clock
from emulator.devices import gicv2 as g
from emulator.devices import pl011 as p
from emulator.memory import GuestMemory

Tree = dict[str, "bytes | Tree"]


def parse(blob: bytes) -> Tree:
    """A flattened tree as nested dictionaries: an independent reader."""
    magic, total, at, strings, _, version, _, _, _, size = struct.unpack_from(">10I", blob)
    assert (magic, total, version) == (MAGIC, len(blob), 17)
    end, stack = at + size, [dict[str, "bytes | Tree"]()]
    while at < end:
        token = struct.unpack_from(">I", blob, at)[0]
        at += 4
        if token == 1:
            stop = blob.index(0, at)
            name, at = blob[at:stop].decode(), stop + 4 & ~3
            node: Tree = {}
            stack[-1][name] = node
            stack.append(node)
        elif token == 2:
            stack.pop()
        elif token == 3:
            length, offset = struct.unpack_from(">II", blob, at)
            name = blob[strings + offset : blob.index(0, strings + offset)].decode()
            stack[-1][name] = blob[at + 8 : at + 8 + length]
            at += 8 + length + 3 & ~3
        else:
            assert token == 9
            break
    root = stack[0][""]
    assert isinstance(root, dict)
    return root


class Bench:
    """A board with its console and a clock that only moves when told."""

    def __init__(self) -> None:
        self.now = 0
        self.printed = bytearray()
        self.memory = GuestMemory(16 << 20, v.MEMORY_BASE)
        self.clock = Clock(lambda: self.now, 1_000_000_000)
        self.board = v.Virt(self.memory, self.clock, console=self.printed.extend)

    def timer_in(self, nanoseconds: int) -> None:
        write = self.board.mmio.write
        write(v.GIC_DISTRIBUTOR + g.D_CTLR, 4, 1)
        write(v.GIC_DISTRIBUTOR + g.D_SET_ENABLE, 4, 1 << v.VIRTUAL_TIMER_IRQ)
        write(v.GIC_INTERFACE + g.C_PMR, 4, 0xF0)
        write(v.GIC_INTERFACE + g.C_CTLR, 4, 1)
        self.board.timer.write("CNTV_TVAL", nanoseconds // 16)
        self.board.timer.write("CNTV_CTL", 1)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_tree_comes_back_as_it_was_made() -> None:
    root = Node("", {"a": "text", "b": 7, "c": (1, 2), "d": ("x", "yy"), "e": None, "f": b"\1\2\3"})
    root.children.append(Node("child@1", {"reg": cells(0x1_2345_6789)}))
    assert parse(flatten(root)) == {
        "a": b"text\0",
        "b": b"\0\0\0\7",
        "c": b"\0\0\0\1\0\0\0\2",
        "d": b"x\0yy\0",
        "e": b"",
        "f": b"\1\2\3",
        "child@1": {"reg": b"\0\0\0\1\x23\x45\x67\x89"},
    }


def test_the_tree_says_what_was_given_and_where_devices_are(bench: Bench) -> None:
    tree = parse(bench.board.device_tree("console=x", (0x4100_0000, 0x4100_1234), b"seed"))
    chosen, memory, uart = tree["chosen"], tree["memory@40000000"], tree["pl011@9000000"]
    assert isinstance(chosen, dict)
    assert isinstance(memory, dict)
    assert isinstance(uart, dict)
    place = uart["reg"]
    assert isinstance(place, bytes)
    assert chosen["bootargs"] == b"console=x\0"
    assert chosen["linux,initrd-end"] == b"\0\0\0\0\x41\0\x12\x34"
    assert chosen["rng-seed"] == b"seed"
    assert memory["reg"] == struct.pack(">QQ", v.MEMORY_BASE, 16 << 20)
    assert bench.board.mmio.find(int.from_bytes(place[:8], "big")) == "uart"
    assert bench.board.device_tree("") == bench.board.device_tree("")


def test_without_an_initramfs_and_a_seed_the_tree_names_none(bench: Bench) -> None:
    chosen = parse(bench.board.device_tree("quiet"))["chosen"]
    assert isinstance(chosen, dict)
    assert set(chosen) == {"bootargs", "stdout-path"}


def test_what_is_sent_is_printed_and_what_is_fed_requests(bench: Bench) -> None:
    write = bench.board.mmio.write
    write(v.UART + p.CR, 4, 0x301)
    write(v.UART + p.DR, 4, ord("!"))
    assert bench.printed == b"!"
    write(v.UART + p.IMSC, 4, p.INT_TIMEOUT)
    bench.timer_in(1 << 30)
    write(v.GIC_DISTRIBUTOR + g.D_SET_ENABLE + 4, 4, 1 << v.UART_IRQ - 32)
    bench.board.feed_console(b"k")
    assert bench.board.intr
    assert bench.board.mmio.read(v.GIC_INTERFACE + g.C_IAR, 4) == v.UART_IRQ


def test_an_idle_guest_jumps_to_its_timer(bench: Bench) -> None:
    assert bench.board.next_wake() is None
    assert not bench.board.idle()
    bench.timer_in(1_600_000)
    assert bench.board.next_wake() == 1_600_000
    assert bench.board.idle()
    assert (bench.board.intr, bench.clock.now()) == (True, 1_600_000)


@pytest.mark.parametrize(("call", "kind"), [(0x8400_0008, ShutdownKind.POWER_OFF), (0x8400_0009, ShutdownKind.RESET)])
def test_firmware_calls_end_the_run_and_the_first_end_counts(bench: Bench, call: int, kind: ShutdownKind) -> None:
    bench.board.psci.call(call, [0])
    bench.board.psci.call(0x8400_0008, [0])
    assert bench.board.shutdown == Shutdown(kind)


def test_a_restored_board_is_the_same_and_goes_on(bench: Bench) -> None:
    bench.timer_in(3_200)
    bench.board.feed_console(b"typed")
    state, other = bench.board.state, Bench()
    other.board.restore(state)
    assert (other.board.state, other.board.digest()) == (state, bench.board.digest())
    other.now += 3_200
    other.clock.run_due()
    assert other.board.intr


def test_devices_and_memory_share_no_address(bench: Bench) -> None:
    for start, size in bench.board.device_space:
        assert start + size <= bench.memory.base or start >= bench.memory.end
