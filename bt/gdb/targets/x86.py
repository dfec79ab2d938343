"""x86 as gdb sees it: 64-bit and 32-bit guests, with control registers and MSRs, and their page tables.

Room: `bt/gdb/targets`. The order of the first rows is gdb's own. Walks read the guest's tables and mark nothing
(Intel's manual, volume 3, chapter 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from bt.gdb.targets import Mapped, Register, Step, Target, Walk, table_memory

_CORE, _SEGMENTS, _OWN = "org.gnu.gdb.i386.core", "org.gnu.gdb.i386.segments", "retrap.system"
_NAMES_64: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_PLACES_64: Final = (0, 3, 1, 2, 6, 7, 5, 4, *range(8, 16))
_NAMES_32: Final = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_SEGMENT_NUMBERS: Final = {"cs": 1, "ss": 2, "ds": 3, "es": 0, "fs": 4, "gs": 5}
_X87: Final = {
    "fctrl": (0, 2),
    "fstat": (2, 2),
    "ftag": (4, 1),
    "fiseg": (12, 2),
    "fioff": (8, 4),
    "foseg": (20, 2),
    "fooff": (16, 4),
    "fop": (6, 2),
}
"""Where FXSAVE has each: offset and bytes."""
_EFLAGS: Final = (
    '<flags id="i386_eflags" size="4">'
    + "".join(
        f'<field name="{name}" start="{bit}" end="{bit}"/>'
        for bit, name in (
            (0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"), (10, "DF"), (11, "OF"),
            (14, "NT"), (16, "RF"), (17, "VM"), (18, "AC"), (19, "VIF"), (20, "VIP"), (21, "ID"),
        )
    )
    + "</flags>"
)  # fmt: skip
_FRAME: Final = 0x000F_FFFF_FFFF_F000
_PRESENT, _LARGE = 1, 1 << 7
_LONG_MODE: Final = 1 << 10


def _general(place: int) -> tuple[Callable[[Any], int], Callable[[Any, int], None]]:
    def write(cpu: Any, value: int) -> None:
        cpu.gpr[place] = value

    return lambda cpu: int(cpu.gpr[place]), write


def _set_pc(cpu: Any, value: int) -> None:
    cpu.rip = value


def _set_flags(cpu: Any, value: int) -> None:
    cpu.rflags = value


def _plain(name: str) -> Callable[[Any], int]:
    return lambda cpu: int(getattr(cpu, name, 0))


def _cr3(cpu: Any) -> int:
    return int(cpu.cr3 if hasattr(cpu, "cr3") else cpu.registers.control(3))


def _selector(number: int) -> Callable[[Any], int]:
    return lambda cpu: int(cpu.segment(number)[0])


def _segment_base(number: int) -> Callable[[Any], int]:
    return lambda cpu: int(cpu.registers.segment_base(number))


def _set_base(number: int) -> Callable[[Any, int], None]:
    return lambda cpu, value: cpu.registers.set_segment_base(number, value)


def _kernel_gs(cpu: Any) -> int:
    own = getattr(cpu, "kernel_gs_base", None)
    return int(cpu.registers.msr(0xC000_0102) if own is None else own)


def _rows(bits: int) -> Iterator[Register]:
    pairs = zip(_NAMES_64, _PLACES_64, strict=True) if bits == 64 else zip(_NAMES_32, range(8), strict=True)
    for name, place in pairs:
        read, write = _general(place)
        kind = {"rbp": "data_ptr", "rsp": "data_ptr", "ebp": "data_ptr", "esp": "data_ptr"}.get(name, f"int{bits}")
        yield Register(name, bits, _CORE, read, write, kind)
    yield Register("rip" if bits == 64 else "eip", bits, _CORE, lambda cpu: int(cpu.rip), _set_pc, "code_ptr")
    yield Register("eflags", 32, _CORE, lambda cpu: int(cpu.rflags), _set_flags, "i386_eflags")
    for name, number in _SEGMENT_NUMBERS.items():
        yield Register(name, 32, _CORE, _selector(number), None, "int32")
    for number in range(8):
        yield Register(f"st{number}", 80, _CORE, _floating(32 + 16 * number, 10), None, "i387_ext")
    for name, (offset, size) in _X87.items():
        yield Register(name, 32, _CORE, _floating(offset, size), None, "int")
    if bits == 64:
        yield Register("fs_base", 64, _SEGMENTS, _segment_base(4), _set_base(4), "int")
        yield Register("gs_base", 64, _SEGMENTS, _segment_base(5), _set_base(5), "int")
    for name in ("cr0", "cr2"):
        yield Register(name, bits, _OWN, _plain(name), None)
    yield Register("cr3", bits, _OWN, _cr3, None)
    yield Register("cr4", bits, _OWN, _plain("cr4"), None)
    yield Register("cpl", 32, _OWN, _plain("cpl"), None)
    for name in ("gdt_base", "gdt_limit", "idt_base", "idt_limit"):
        yield Register(name, bits, _OWN, _plain(name), None)
    if bits == 64:
        for name in ("efer", "star", "lstar", "cstar", "fmask"):
            yield Register(name, 64, _OWN, _plain(name), None)
        yield Register("kernel_gs_base", 64, _OWN, _kernel_gs, None)


def _floating(offset: int, size: int) -> Callable[[Any], int]:
    """A part of what FXSAVE stores."""

    def read(cpu: Any) -> int:
        image: bytes = cpu.floating_image()
        return int.from_bytes(image[offset : offset + size], "little")

    return read


class _OnEngine:
    """The processor of a guest that has no virtual one but the engine's own: one of Xen's interface, in long mode on
    its own tables."""

    def __init__(self, driver: Any) -> None:
        object.__setattr__(self, "registers", driver.machine.engine.registers)
        object.__setattr__(self, "gpr", self.registers.gpr)
        self.cpl = driver.vcpu.level

    def __getattr__(self, name: str) -> Any:
        registers = object.__getattribute__(self, "registers")
        if name in ("rip", "rflags", "segment", "cr2"):
            return getattr(registers, name)
        if name in ("cr0", "cr3", "cr4"):
            return registers.control(int(name[2]))
        if name == "efer":
            return registers.msr(0xC000_0080)
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("rip", "rflags"):
            setattr(self.registers, name, value)
        else:
            object.__setattr__(self, name, value)


def _cpu(driver: Any) -> Any:
    """The guest's processor: the virtual one, at full privilege the driver."""
    cpu = getattr(driver, "vcpu", driver)
    return cpu if hasattr(cpu, "cr0") else _OnEngine(driver)


class _Processor:
    """The guest's processor, with the engine's floating point, which is not virtual."""

    def __init__(self, driver: Any) -> None:
        object.__setattr__(self, "_cpu", _cpu(driver))
        object.__setattr__(self, "_driver", driver)
        object.__setattr__(self, "_image", None)

    def floating_image(self) -> bytes:
        """x87 and SSE, as FXSAVE stores them."""
        if self._image is None:
            object.__setattr__(self, "_image", self._driver.engine.floating())
        return bytes(self._image)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_cpu"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._cpu, name, value)


class X86Target(Target):
    """A target whose rows also see floating point."""

    __slots__ = ()

    def processor(self, driver: Any) -> Any:
        """What the rows read."""
        return _Processor(driver)


class _Form(NamedTuple):
    """Page tables of one mode."""

    shifts: tuple[int, ...]
    size: int
    """Bytes of an entry."""
    root: int

    def entries(self, level: int) -> int:
        """Entries of a table, counted from the root's level 0."""
        return 4 if len(self.shifts) == 3 and level == 0 else 512 if self.size == 8 else 1024

    def is_page(self, entry: int, level: int) -> bool:
        """Whether an entry maps a page and names no table."""
        large = entry & _LARGE and (
            self.shifts[level] in (21, 22) or (self.shifts[level] == 30 and len(self.shifts) == 4)
        )
        return self.shifts[level] == 12 or bool(large)

    def frame(self, entry: int, level: int) -> int:
        """Guest-physical address that an entry names."""
        shift = self.shifts[level]
        frame = entry & (_FRAME if self.size == 8 else 0xFFFF_F000)
        if shift == 12 or not self.is_page(entry, level):
            return frame
        high = (entry >> 13 & 0xFF) << 32 if shift == 22 else 0
        return high | frame & ~((1 << shift) - 1)


def _form(driver: Any) -> _Form | None:
    """The guest's tables; None without paging."""
    cpu = _cpu(driver)
    if not int(cpu.cr0) >> 31:
        return None
    root = _cr3(cpu)
    if int(getattr(cpu, "efer", 0)) & _LONG_MODE:
        return _Form((39, 30, 21, 12), 8, root & _FRAME)
    if int(cpu.cr4) & 1 << 5:
        return _Form((30, 21, 12), 8, root & 0xFFFF_FFE0)
    return _Form((22, 12), 4, root & 0xFFFF_F000)


def walk(driver: Any, address: int) -> Walk:
    """Translate as the guest's processor would for its kernel."""
    form = _form(driver)
    if form is None:
        return Walk(address)
    if form.shifts[0] == 39 and (address + 0x8000_0000_0000) >> 48 & 0xFFFF:
        return Walk(None)
    memory, table = table_memory(driver), form.root
    steps: list[Step] = []
    for level, shift in enumerate(form.shifts):
        at = table + (address >> shift & form.entries(level) - 1) * form.size
        if not memory.base <= at <= memory.end - form.size:
            break
        entry = memory.read(at, form.size)
        steps.append(Step(len(form.shifts) - level, at, entry))
        if not entry & _PRESENT:
            break
        table = form.frame(entry, level)
        if form.is_page(entry, level):
            return Walk(table | address & (1 << shift) - 1, tuple(steps))
    return Walk(None, tuple(steps))


def mappings(driver: Any) -> Iterator[Mapped]:
    """All pages that the guest's tables map now."""
    form = _form(driver)
    return iter(()) if form is None else _mapped(table_memory(driver), form, form.root, 0, 0, "rwxu")


def _mapped(memory: Any, form: _Form, table: int, level: int, start: int, rights: str) -> Iterator[Mapped]:
    shift = form.shifts[level]
    for index in range(form.entries(level)):
        at = table + index * form.size
        if not memory.base <= at <= memory.end - form.size:
            return
        entry = memory.read(at, form.size)
        if not entry & _PRESENT:
            continue
        address = start | index << shift
        if shift == 39 and index >= 256:
            address |= 0xFFFF_0000_0000_0000
        lost = ("" if entry & 2 else "w") + ("" if entry & 4 else "u") + ("x" if form.size == 8 and entry >> 63 else "")
        here = "".join(letter for letter in rights if letter not in lost)
        if len(form.shifts) == 3 and level == 0:
            here = rights  # entries of the first table of PAE have no rights
        if form.is_page(entry, level):
            yield Mapped(address, form.frame(entry, level), 1 << shift, here)
        else:
            yield from _mapped(memory, form, form.frame(entry, level), level + 1, address, here)


_TYPES = f"{_CORE}|{_EFLAGS}"
X86_64: Final = X86Target("i386:x86-64", tuple(_rows(64)), walk, "rip", mappings, _TYPES)
I386: Final = X86Target("i386", tuple(_rows(32)), walk, "eip", mappings, _TYPES, word=4)
