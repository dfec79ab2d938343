"""Everything that reads what nobody vouches for, as targets: a name, files to begin with, and the reading.

Room: tests. A target reads a file to the end, through all that is read later and lazily; it may raise the errors that
the command line tells in a sentence, and nothing else.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from bt import manifest, rewrite
from bt.image import Image, from_bytes, kallsyms, payload, to_boot
from bt.plan import Plan, read_plan
from bt.planner import plan
from bt.report.account import account
from bt.report.formats import FORMATS, render
from bt.report.source import account_of, of_rewritten
from bt.scan import scan
from emulator.errors import RetrapError
from tests.bt.image import image_files as files
from tests.bt.image.image_files import BASE, Part
from tests.bt.rewrite import small_kernel

LOW = 0xC010_0000
"""Where 32-bit kernels of these tests are linked."""


@dataclass(frozen=True)
class Target:
    """One parser."""

    name: str
    seeds: tuple[bytes, ...]
    """Sound files, small, with the headers of real ones."""
    read: Callable[[bytes], object]


def _read_image(data: bytes) -> None:
    """An image, with everything that is read from it later, each by itself."""
    image = from_bytes(data, "file")
    readers: tuple[Callable[[], object], ...] = (
        lambda: list(image.symbols),
        lambda: image.symbols.name_at(image.entry),
        lambda: image.linux and image.linux.counts(),
        lambda: image.linux and (image.linux.leads(), image.linux.places()),
        lambda: image.relocations,
        lambda: (image.pvh_entry, image.build_id),
        lambda: image.source_line(image.entry),
        lambda: [image.view(start, end - start) for start, end in image.text_ranges],
        lambda: to_boot(image),
        lambda: to_boot(image, delta=0x20_0000),
        lambda: _read_scan(image),
        lambda: of_rewritten(image),
        lambda: rewrite.original(image),
    )
    for reader in readers:
        try:
            reader()
        except RetrapError as error:
            check(error)


def _read_scan(image: Image) -> None:
    if sum(end - start for start, end in image.text_ranges) < 1 << 16:
        scan(image)


def check(error: RetrapError) -> None:
    """What is told is one sentence of bearable length."""
    assert type(error) is not RetrapError
    text = str(error)
    assert "\n" not in text, text
    assert 10 < len(text) < 600, text
    text.encode()


def _read_payload(data: bytes) -> None:
    payload.decompress(memoryview(data), "file", 1 << 22)


def _read_kallsyms(data: bytes) -> None:
    for bits in (64, 32):
        for order in ("little", "big"):
            kallsyms.find([memoryview(data)], bits, order)


def _read_plan(data: bytes) -> None:
    account_of(data, "plan.json")
    _use_plan(read_plan(data.decode()))


def _use_plan(made: Plan) -> None:
    """A plan that was accepted is reported in every format, and refused or carried out for an image."""
    for name in FORMATS:
        render(account(made, "plan.json"), name).encode()
    made.check(small_kernel.image(), made.mode)
    rewrite.rewrite(small_kernel.image(), made)


def _read_manifest(data: bytes) -> None:
    manifest.parse(data, "file")


def _read_rewritten(data: bytes) -> None:
    rewrite.revert(data, "file")


@cache
def small_plan() -> Plan:
    """Of the tests' small kernel."""
    image = small_kernel.image()
    return plan(image, scan(image), "auto")


def plan_value() -> Any:
    """That plan as plain values, to be changed."""
    return json.loads(json.dumps(small_plan().to_json()))


def _rewritten() -> bytes:
    return rewrite.rewrite(small_kernel.image(), small_plan())


def _manifest() -> bytes:
    section = from_bytes(_rewritten(), "file").section(manifest.MANIFEST)
    assert section is not None
    return bytes(section.data)


def _linux() -> bytes:
    """A kernel with kallsyms, patch tables by section, notes and a relocation table."""
    names = [(BASE + index, "t", f"function_{index}") for index in range(300)]
    at = BASE + 0x50_0000
    parts = [files.TEXT, files.DATA, Part(".rodata", files.make_kallsyms(names), BASE + 0x40_0000, 0x140_0000)]
    parts.append(Part(".altinstr_replacement", b"\x0f\x01\xca\x90" * 8, BASE + 0x30_0000, 0x130_0000, 5))

    def add(name: str, data: bytes) -> None:
        place = at + 0x1000 * len(parts)
        parts.append(Part(name, data, place, place - BASE + 0x100_0000))

    def near(offset: int, target: int) -> int:
        return target - (at + 0x1000 * len(parts)) - offset

    home = BASE + 16
    add(".altinstructions", struct.pack("<iiHBB", near(0, home), near(4, BASE + 0x30_0000), 9 * 32 + 20, 3, 3))
    add(".parainstructions", struct.pack("<QBB6x", home, 44, 6))
    add(".smp_locks", struct.pack("<i", near(0, home)))
    add("__ex_table", struct.pack("<iiI", near(0, home), near(4, home + 8), 3))
    add(".retpoline_sites", struct.pack("<i", near(0, home)))
    add(".return_sites", struct.pack("<i", near(0, home)))
    table = files.make_relocations([BASE + 0x20_0000], [BASE + 0x20_0010], [BASE + 0x20_0020])
    return files.make_elf(parts, notes=files.make_note(b"GNU", 3, bytes(20))) + table


def _low(machine: int, order: str, entry: int = LOW) -> bytes:
    text = Part(".text", b"\x90" * 60 + b"\xc3" * 4, LOW, 0x10_0000, 5)
    data = Part(".data", bytes(range(256)), LOW + 0x20_0000, 0x30_0000, 6, 0x1000)
    symbols = files.make_symtab([(LOW, "_text", 0x12, 1)], 4, bits=32, order=order)
    return files.make_elf((text, data, *symbols), entry, machine=machine, bits=32, order=order)


def _with_symbols() -> bytes:
    symbols = files.make_symtab([(BASE, "_text", 0x12, 1), (BASE + 8, "linux_banner", 0x12, 1)], 4)
    return files.make_elf((files.TEXT, files.DATA, *symbols))


def _arm64_image() -> bytes:
    """Linux's Documentation/arm64/booting.rst: two instructions, offset, size, flags, the magic word at 0x38."""
    head = struct.pack("<IIQQQQQQ4sI", 0x1400_0010, 0xD503_201F, 0, 0x4000, 0xA, 0, 0, 0, b"ARM\x64", 0)
    return head + struct.pack("<III", 0xD538_4100, 0xD69F_03E0, 0xD65F_03C0) * 400


def _zimage() -> bytes:
    """ARM's boot wrapper: NOPs, a branch, the magic word at 0x24, start and end, a table, then a payload."""
    kernel = struct.pack("<III", 0xEA00_0000, 0xE10F_9000, 0xE229_901A) + struct.pack("<I", 0xC000_8000) * 1500
    body = files.COMPRESS["gzip"](kernel) + struct.pack("<I", len(kernel))
    table = 0x40
    begin = table + 24
    end = begin + len(body)
    head = struct.pack("<8I", *([0xE1A0_0000] * 8)) + struct.pack("<IIII", 0xEA00_0002, 0x016F_2818, 0, end)
    head += struct.pack("<III", 0x0403_0201, 0x4545_4545, table)
    return head.ljust(table, b"\0") + struct.pack("<6I", 5, 0x5A53_4C4B, end - 4, 0x1000, 0x8000, 0) + body


def _self_extractor(order: str) -> bytes:
    """A MIPS executable that unpacks a kernel to 0x80100000 and jumps to 0x80100400 in it."""
    kernel = random.Random(1).randbytes(0x1_0400)
    body = files.COMPRESS["gzip"](kernel) + struct.pack(order + "I", len(kernel))
    # lui a0, 0x8010; nop; lui t9, 0x8010; ori t9, t9, 0x400; jr t9; nop
    code = struct.pack(order + "6I", 0x3C04_8010, 0, 0x3C19_8010, 0x3739_0400, 0x0320_0008, 0)
    text = Part(".text", code.ljust(128, b"\0"), 0x8100_0000, 0x100_0000, 5)
    data = Part(".data", body, 0x8110_0000, 0x110_0000, 6)
    return files.make_elf((text, data), 0x8100_0000, machine=8, bits=32, order=order)


def _elf_with_table() -> bytes:
    return _with_symbols() + files.make_relocations([BASE + 0x20_0000], [BASE + 0x20_0010], [BASE + 0x20_0020])


def _payloads() -> list[bytes]:
    return [pack(_elf_with_table()) for pack in files.COMPRESS.values()]


def _kallsyms() -> list[bytes]:
    names = [(0x8010_0000 + 12 * index, "tTdr"[index % 4], f"sys_name_{index}") for index in range(300)]
    made = [files.make_kallsyms(names, base=0x8010_0000, bits=32, order=order) for order in ("<", ">")]
    return [*made, files.make_kallsyms([(BASE + n, "t", f"tcp_{n}") for n in range(300)])]


_MAKERS: dict[str, tuple[Callable[[], list[bytes]], Callable[[bytes], object]]] = {
    "elf64": (lambda: [_with_symbols(), small_kernel.kernel()], _read_image),
    "elf32": (lambda: [_low(3, "<"), _low(40, "<"), _low(8, "<"), _low(8, ">")], _read_image),
    "linux": (lambda: [_linux()], _read_image),
    "bzimage": (lambda: [files.make_bzimage(data) for data in _payloads()], _read_image),
    "payload": (_payloads, _read_payload),
    "kallsyms": (_kallsyms, _read_kallsyms),
    "arm64-image": (lambda: [_arm64_image()], _read_image),
    "zimage": (lambda: [_zimage()], _read_image),
    "mips-self-extractor": (lambda: [_self_extractor("<"), _self_extractor(">")], _read_image),
    "rewritten": (lambda: [_rewritten()], _read_rewritten),
    "rewritten-image": (lambda: [_rewritten()], _read_image),
    "manifest": (lambda: [_manifest()], _read_manifest),
    "plan": (lambda: [json.dumps(plan_value()).encode()], _read_plan),
}
TARGETS: tuple[str, ...] = tuple(_MAKERS)
"""Names of all of them."""


@cache
def target(name: str) -> Target:
    """A target, with its files made when it is first asked for."""
    make, reading = _MAKERS[name]
    return Target(name, tuple(make()), reading)


def read(name: str, data: bytes) -> None:
    """Read a file; what is refused is refused in a sentence, any other error gets out."""
    try:
        target(name).read(data)
    except RetrapError as error:
        check(error)
