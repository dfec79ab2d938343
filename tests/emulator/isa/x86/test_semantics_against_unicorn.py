"""The semantics of segments and far transfers agree with another implementation: raw Unicorn.

Each example runs one instruction in Unicorn and its semantics on plain values, from the same registers,
descriptor tables and stack, at CPL 0 and CPL 3, in 64-bit and compatibility mode. Where Unicorn departs
from the manuals, `departure` names it; everything else must agree to the last bit.
"""

import ctypes
import importlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.isa.x86 import descriptors as d
from emulator.isa.x86.processor import CS, DS, ES, FS, GS, SS, Fault
from emulator.isa.x86.segments import lar, load_ldt, load_segment, load_task_register, lsl, verr, verw
from emulator.isa.x86.transfer import far_call, far_jump, far_return, iret, sysret
from tests.emulator.isa.x86.memory_processor import (
    FREE,
    GDT,
    KERNEL_CS,
    KERNEL_DS,
    LDT,
    TABLE,
    TASK,
    USER_CS,
    USER_CS32,
    USER_DS,
    MemoryProcessor,
)

# The binding's annotations are partial: as Any, its calls can be checked by nobody but also fail no check.
unicorn: Any = importlib.import_module("unicorn")
names: Any = importlib.import_module("unicorn.x86_const")

TEXT = 0x9_0000
STACK = 0x7000
FAR_POINTER = 0x6000
SLOTS = [FREE + 8 * n for n in range(6)] + [4, 12]
CODE_32 = d.KERNEL_CODE & ~d.LONG | d.DEFAULT_BIG

# Where Unicorn 2.1.4's saved context holds the CPU, behind its own header of 40 bytes.
_HEADER, _FLAGS, _SEGMENTS, _ERROR = 40, 0xB0, 0xB8, 0x1508
_ZERO_FLAG = 0x40


@dataclass
class Outcome:
    """What an instruction did: the fault, or the registers and tables afterwards."""

    fault: tuple[int, int | None] | None
    rip: int = 0
    rflags: int = 0
    cpl: int = 0
    gpr: tuple[int, ...] = ()
    segments: tuple[tuple[int, int, int, int], ...] = ()
    tables: bytes = b""


class Oracle:
    """One Unicorn, re-loaded with the whole state of a `MemoryProcessor` for each instruction."""

    def __init__(self) -> None:
        assert unicorn.__version__ == "2.1.4", "the offsets below were measured on Unicorn 2.1.4"
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.uc.mem_map(0, 0x10_0000)
        self.uc.hook_add(unicorn.UC_HOOK_INTR, self._on_exception)
        self.uc.hook_add(unicorn.UC_HOOK_INSN_INVALID, self._on_invalid)
        self.uc.reg_write(names.UC_X86_REG_MSR, (0xC000_0080, 0xD01))
        self.context = self.uc.context_save()
        self.state: int = ctypes.cast(self.context.context, ctypes.c_void_p).value + _HEADER  # type: ignore[operator]
        self.vector: int | None = None

    def _on_exception(self, _uc: object, vector: int, _data: object) -> None:
        self.vector = vector
        self.uc.emu_stop()

    def _on_invalid(self, _uc: object, _data: object) -> bool:
        self.vector = 6
        return False

    def run(self, cpu: MemoryProcessor, code: bytes) -> Outcome:
        for number, page in cpu.pages.items():
            self.uc.mem_write(number << 12, bytes(page))
        self.uc.mem_write(TEXT, code + b"\x90" * 4)
        self.uc.ctl_remove_cache(TEXT, TEXT + 16)
        self._load(cpu)
        self.vector = None
        try:
            self.uc.emu_start(TEXT, 0, count=1)
        except unicorn.UcError as error:
            # The fetch at the target may fail: the instruction itself has completed.
            if self.vector is None and error.errno not in (
                unicorn.UC_ERR_FETCH_UNMAPPED,
                unicorn.UC_ERR_READ_UNMAPPED,
            ):
                raise
        return self._outcome()

    def _load(self, cpu: MemoryProcessor) -> None:
        uc = self.uc
        uc.reg_write(names.UC_X86_REG_EFLAGS, cpu.rflags)
        uc.reg_write(names.UC_X86_REG_MSR, (0xC000_0081, cpu.star))
        uc.context_update(self.context)
        flags = 1 << 7 | 1 << 14 | cpu.cpl | cpu.rflags & 0x3000
        attributes = cpu.segments[CS][3]
        if attributes & d.LONG:
            flags |= 1 << 15 | 0x30
        else:
            flags |= attributes >> 18 & 0x10 | cpu.segments[SS][3] >> 17 & 0x20 | 0x40
        ctypes.c_uint32.from_address(self.state + _FLAGS).value = flags
        tables = [(0, cpu.gdt_base, cpu.gdt_limit, 0), (0, cpu.idt_base, cpu.idt_limit, 0)]
        packed = b"".join(struct.pack("<IxxxxQII", *segment) for segment in cpu.segments + tables)
        ctypes.memmove(self.state + _SEGMENTS, packed, len(packed))
        ctypes.memmove(self.state, cpu.gpr.tobytes(), 128)
        ctypes.c_int32.from_address(self.state + 0x1578).value = -1
        uc.context_restore(self.context)

    def _outcome(self) -> Outcome:
        uc = self.uc
        uc.context_update(self.context)
        if self.vector is not None:
            error = ctypes.c_uint32.from_address(self.state + _ERROR).value
            return Outcome((self.vector, None if self.vector == 6 else error))
        raw = ctypes.string_at(self.state, _SEGMENTS + 24 * 8)
        return Outcome(
            None,
            uc.reg_read(names.UC_X86_REG_RIP),
            uc.reg_read(names.UC_X86_REG_EFLAGS),
            raw[_FLAGS] & 3,
            struct.unpack_from("<16Q", raw),
            tuple(
                (selector, base, limit, attributes & d.ATTRIBUTES)
                for selector, base, limit, attributes in struct.iter_unpack("<IxxxxQII", raw[_SEGMENTS:])
            ),
            bytes(uc.mem_read(GDT, 0x1000)) + bytes(uc.mem_read(LDT, 0x1000)),
        )


def ours(cpu: MemoryProcessor, operation: Callable[[MemoryProcessor], None]) -> Outcome:
    """What the semantics make of it."""
    try:
        operation(cpu)
    except Fault as fault:
        return Outcome((fault.vector, fault.error))
    return Outcome(
        None, cpu.rip, cpu.rflags, cpu.cpl, tuple(cpu.gpr), tuple(cpu.segments), bytes(cpu.pages[1] + cpu.pages[5])
    )


Semantics = Callable[[MemoryProcessor], None]


def load(index: int) -> Semantics:
    def operation(cpu: MemoryProcessor) -> None:
        load_segment(cpu, index, cpu.gpr[1] & 0xFFFF)
        cpu.rip += 2

    return operation


def load_system(semantics: Callable[[MemoryProcessor, int], None]) -> Semantics:
    def operation(cpu: MemoryProcessor) -> None:
        semantics(cpu, cpu.gpr[1] & 0xFFFF)
        cpu.rip += 3

    return operation


def inspect(semantics: Callable[[MemoryProcessor, int], int | bool | None]) -> Semantics:
    def operation(cpu: MemoryProcessor) -> None:
        result = semantics(cpu, cpu.gpr[1] & 0xFFFF)
        cpu.rip += 3
        cpu.rflags &= ~_ZERO_FLAG
        if result is not None and result is not False:
            cpu.rflags |= _ZERO_FLAG
            cpu.gpr[0] = cpu.gpr[0] if result is True else result

    return operation


def jump(size: int) -> Semantics:
    return lambda cpu: far_jump(cpu, cpu.read(FAR_POINTER + size, 2), cpu.read(FAR_POINTER, size))


def call(size: int, length: int) -> Semantics:
    return lambda cpu: far_call(cpu, cpu.read(FAR_POINTER + size, 2), cpu.read(FAR_POINTER, size), size, length)


Operations = dict[str, tuple[bytes, int, Semantics]]
"""By name: the encoding, the operand size, the semantics. The selector is in CX, [RAX] or on the stack."""

EVERYWHERE: Operations = {
    "mov es": (b"\x8e\xc1", 2, load(ES)),
    "mov ss": (b"\x8e\xd1", 2, load(SS)),
    "mov ds": (b"\x8e\xd9", 2, load(DS)),
    "mov fs": (b"\x8e\xe1", 2, load(FS)),
    "mov gs": (b"\x8e\xe9", 2, load(GS)),
    "lar": (b"\x0f\x02\xc1", 4, inspect(lar)),
    "lsl": (b"\x0f\x03\xc1", 4, inspect(lsl)),
    "verr": (b"\x0f\x00\xe1", 2, inspect(verr)),
    "verw": (b"\x0f\x00\xe9", 2, inspect(verw)),
    "lldt": (b"\x0f\x00\xd1", 2, load_system(load_ldt)),
    "ltr": (b"\x0f\x00\xd9", 2, load_system(load_task_register)),
    "iret 32": (b"\xcf", 4, lambda cpu: iret(cpu, 4)),
    "iret 16": (b"\x66\xcf", 2, lambda cpu: iret(cpu, 2)),
    "retf 32": (b"\xcb", 4, lambda cpu: far_return(cpu, 4)),
    "retf 16": (b"\x66\xcb", 2, lambda cpu: far_return(cpu, 2)),
    "retf 32, 16": (b"\xca\x10\x00", 4, lambda cpu: far_return(cpu, 4, 16)),
    "jmp far 32": (b"\xff\x28", 4, jump(4)),
    "call far 32": (b"\xff\x18", 4, call(4, 2)),
}
IN_64_BIT_MODE: Operations = {
    "iret 64": (b"\x48\xcf", 8, lambda cpu: iret(cpu, 8)),
    "retf 64": (b"\x48\xcb", 8, lambda cpu: far_return(cpu, 8)),
    "retf 64, 16": (b"\x48\xca\x10\x00", 8, lambda cpu: far_return(cpu, 8, 16)),
    "jmp far 64": (b"\x48\xff\x28", 8, jump(8)),
    "call far 64": (b"\x48\xff\x18", 8, call(8, 3)),
    "sysret 64": (b"\x48\x0f\x07", 8, lambda cpu: sysret(cpu, 8)),
    "sysret 32": (b"\x0f\x07", 4, lambda cpu: sysret(cpu, 4)),
}
IN_64_BIT_MODE.update(EVERYWHERE)


@dataclass
class Example:
    """One instruction with what it works on."""

    user: bool
    long: bool
    name: str
    descriptors: list[int]
    selector: int
    stack: int
    rip: int
    rsp: int
    flags: int
    popped_flags: int
    data: list[int]

    @property
    def transfers(self) -> bool:
        return self.name.split()[0] in ("iret", "retf", "jmp", "call", "sysret")

    def processor(self) -> MemoryProcessor:
        """The state before the instruction."""
        cpu = MemoryProcessor()
        if self.user:
            cpu.run_user(64 if self.long else 32)
        elif not self.long:
            cpu.set_descriptor(KERNEL_CS, d.segment_descriptor(0, d.FLAT_LIMIT, CODE_32))
            cpu.segments[CS] = (KERNEL_CS, 0, d.FLAT_LIMIT, CODE_32)
        for selector, descriptor in zip(SLOTS, self.descriptors, strict=True):
            cpu.set_descriptor(selector, descriptor)
        cpu.rip, cpu.rflags = TEXT, self.flags
        _, size, _ = IN_64_BIT_MODE[self.name]
        frame = [self.rip, self.selector] + [self.popped_flags] * self.name.startswith("iret")
        frame += [0] * (16 // size if self.name.endswith("16") and "," in self.name else 0)
        for index, word in enumerate([*frame, self.rsp, self.stack]):
            cpu.write(STACK + index * size, size, word & (1 << 8 * size) - 1)
        cpu.write(FAR_POINTER, 8, self.rip)
        cpu.write(FAR_POINTER + size, 2, self.selector)
        cpu.gpr[0], cpu.gpr[4], cpu.gpr[11] = FAR_POINTER, STACK, self.popped_flags
        cpu.gpr[1] = self.rip if self.name.startswith("sysret") else self.selector
        for index, selector in zip((ES, FS, GS), self.data, strict=True):
            cpu.segments[index] = {
                0: (0, 0x55 if index > DS else 0, 0, 0),
                USER_DS: (USER_DS, 0, d.FLAT_LIMIT, d.USER_DATA),
                KERNEL_DS: (KERNEL_DS, 0, d.FLAT_LIMIT, d.FLAT_DATA),
            }[selector]
        cpu.segments[DS] = (USER_DS, 0, d.FLAT_LIMIT, d.USER_DATA)  # the far pointer is read through it
        return cpu

    def descriptor(self, selector: int) -> int:
        """What a selector names before the instruction, 0 when nothing."""
        cpu = self.processor()
        if not selector & 0xFFFC or selector & 0xFFF8 > 0xFF0:
            return 0
        return cpu.read((LDT if selector & 4 else GDT) + (selector & 0xFFF8), 8)


ACCESS = [
    0x9A, 0x9B, 0xFA, 0xFB, 0x92, 0x93, 0xF2, 0xF3, 0x1A, 0x7A, 0x72, 0x9E, 0x9F, 0xFE, 0xFF, 0x90, 0xF0, 0x96, 0xF6,
    0x82, 0x83, 0x89, 0x8B, 0x98, 0xF8,
]  # fmt: skip
"""Code and data of the two levels in all shapes, absent ones, and system segments; gates have a test of their own."""


def build_descriptor(access: int, flags: int, limit: int, base: int) -> int:
    second = base & 0xFF00_0000 | flags << 20 | limit & 0xF_0000 | access << 8 | base >> 16 & 0xFF
    return second << 32 | (base & 0xFFFF) << 16 | limit & 0xFFFF


DESCRIPTORS = st.builds(
    build_descriptor,
    st.sampled_from(ACCESS) | st.integers(0, 255).filter(lambda access: access & 0x1F not in (4, 5, 6, 7, 12, 14, 15)),
    st.sampled_from([0xA, 0xC, 0x8, 0x0, 0xE, 0x4, 0x2]),
    st.sampled_from([0xF_FFFF, 0xFFFF]) | st.integers(0, 0xF_FFFF),
    st.just(0) | st.integers(0, 2**32 - 1),
)
STANDARD = [selector & ~3 for selector in (0, KERNEL_CS, KERNEL_DS, USER_CS, USER_CS32, USER_DS, TASK, TABLE)]
SELECTORS = st.builds(
    lambda index, rpl: index | rpl,
    st.sampled_from([*SLOTS, *SLOTS, *STANDARD, 0xFF8, 0x1000, 0x1004]),
    st.sampled_from([0, 3, 0, 3, 1, 2]),
)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    long = draw(st.booleans())
    selector = draw(SELECTORS)
    stack = draw(SELECTORS)
    if draw(st.booleans()):
        stack = stack & ~3 | selector & 3
    return Example(
        user=draw(st.booleans()),
        long=long,
        name=draw(st.sampled_from(sorted(IN_64_BIT_MODE if long else EVERYWHERE))),
        descriptors=draw(st.lists(DESCRIPTORS, min_size=len(SLOTS), max_size=len(SLOTS))),
        selector=selector,
        stack=stack,
        rip=draw(st.sampled_from([TEXT + 0x800, TEXT, 0x1_0000]) | st.integers(0, 0xF_FFFF)),
        rsp=draw(st.integers(0, 2**31)),
        flags=draw(st.sampled_from([2, 0x3002, 0x246, 0x1202, 0x2246, 0x4002])),
        popped_flags=draw(st.integers(0, 2**22 - 1)) & ~0x2_4100 | 2,  # a set TF or AC would act at once
        data=draw(st.lists(st.sampled_from([0, 0, USER_DS, KERNEL_DS]), min_size=3, max_size=3)),
    )


def comparable(outcome: Outcome, example: Example) -> tuple[object, ...]:
    """An outcome without what Unicorn does otherwise in every execution.

    - A far transfer does not set the accessed bit of the CS and SS it loads.
    - IRET and SYSRET do not load VIF and VIP; SYSRET loads RF.
    - LTR sets the busy bit in the table, not in TR.
    - The hidden part of a null selector has other attributes, which nothing can read.
    """
    segments = outcome.segments
    tables, rflags = outcome.tables, outcome.rflags
    if example.transfers:
        rflags &= ~0x18_0000
        segments = tuple((s, base, limit, attributes & ~d.ACCESSED) for s, base, limit, attributes in segments)
        words = struct.unpack(f"<{len(tables) // 8}Q", tables)
        tables = struct.pack(f"<{len(words)}Q", *(word & ~(1 << 40) for word in words))
    if example.name == "ltr":
        segments = tuple((s, base, limit, attributes & ~d.BUSY) for s, base, limit, attributes in segments)
    if example.name.startswith("sysret"):
        rflags &= ~0x1_0000
    hidden = tuple(segment if segment[0] & 0xFFFC else segment[:2] for segment in segments)
    return outcome.fault, outcome.rip, rflags, outcome.cpl, outcome.gpr, hidden, tables


def departure(example: Example, mine: Outcome, theirs: Outcome) -> str | None:
    """The name of the way in which Unicorn departs from the manuals in this example."""
    selector, name = example.selector & 0xFFFC, example.name
    descriptor = example.descriptor(example.selector)
    kind = descriptor >> 40 & 0x1F
    at_selector = mine.fault == (13, selector)
    if example.transfers and at_selector and descriptor >> 53 & 3 == 3:
        return "code with L and D both set is accepted"
    if example.transfers and example.rip > d.segment_parts(descriptor)[1] and not name.startswith("sysret"):
        if mine.fault == (13, 0) and theirs.fault in ((13, selector), None):
            return "a target beyond the limit is accepted, or reported with the selector"
        if mine.fault is None and theirs.fault == (13, selector):
            return "far CALL checks the limit of 64-bit code"
    if name[:4] in ("iret", "retf"):
        if mine.fault and mine.fault[0] == 12 and theirs.fault == (11, mine.fault[1]):
            return "an absent stack segment is #NP, not #SS"
        if mine.fault == (13, 0) and not example.stack & 0xFFFC and theirs.fault is None:
            return "a null SS is accepted with any RPL and for compatibility mode"
        if name[:4] == "iret" and example.user and KERNEL_DS in example.data and mine.cpl == theirs.cpl == 3:
            return "a same-level IRET in 64-bit mode drops data segments"
    if name == "mov ss" and mine.fault == (13, 0) and not selector and theirs.fault is None:
        return "a null SS is accepted with any RPL and for compatibility mode"
    if name in ("lar", "lsl", "ltr") and kind in (1, 3):
        return "16-bit task segments exist"
    if name == "ltr" and mine.fault == (13, 0) and not selector and theirs.fault is None:
        return "LTR accepts a null selector"
    if name in ("lldt", "ltr") and at_selector and theirs.fault in (None, (11, selector)):
        return "the upper half of a system descriptor is not checked"
    return None


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle()


def check(oracle: Oracle, example: Example) -> tuple[Outcome, str | None]:
    """Run the example both ways; fails unless they agree or the departure is known."""
    code, _, semantics = IN_64_BIT_MODE[example.name]
    mine = ours(example.processor(), semantics)
    theirs = oracle.run(example.processor(), code)
    if comparable(mine, example) == comparable(theirs, example):
        return mine, None
    known = departure(example, mine, theirs)
    assert known, f"{example}\nours: {mine.fault} {mine.rip:#x}\nUnicorn's: {theirs.fault} {theirs.rip:#x}"
    return mine, known


@settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck))
@given(example=examples())
def test_segment_loads_and_far_transfers_do_what_unicorn_does(oracle: Oracle, example: Example) -> None:
    check(oracle, example)


PLAIN = Example(
    user=False, long=True, name="iret 64", descriptors=[0] * len(SLOTS), selector=USER_CS, stack=USER_DS,
    rip=TEXT + 0x800, rsp=0x1234_5678, flags=2, popped_flags=0x202, data=[0, 0, KERNEL_DS],
)  # fmt: skip


@pytest.mark.parametrize("name", ["iret 64", "iret 32", "retf 64", "retf 32", "retf 64, 16", "sysret 64", "sysret 32"])
@pytest.mark.parametrize("target", [USER_CS, USER_CS32])
def test_returns_to_user_code_agree(oracle: Oracle, name: str, target: int) -> None:
    mine, known = check(oracle, replace(PLAIN, name=name, selector=target))
    assert (mine.fault, known) == (None, None)
    assert mine.cpl == 3
    assert mine.segments[GS][0] == (KERNEL_DS if name.startswith("sysret") else 0)


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("name", ["call far 64", "call far 32"])
@pytest.mark.parametrize("gate_dpl", [0, 3])
def test_call_gates_agree(oracle: Oracle, user: bool, name: str, gate_dpl: int) -> None:
    gate = d.gate(KERNEL_CS, 0x5678, d.TYPE_CALL_GATE, dpl=gate_dpl)
    example = replace(PLAIN, name=name, user=user, selector=FREE, descriptors=[*gate, *[0] * 6])
    mine, known = check(oracle, example)
    assert known is None
    assert mine.fault == ((13, FREE) if user and not gate_dpl else None)
    assert user is False or mine.fault or (mine.cpl, mine.rip) == (0, 0x5678)


CODE = 0xFB


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("code with L and D both set is accepted", {"selector": FREE | 3, "descriptors": (CODE, 0xE, 0xF_FFFF, 0)}),
        (
            "a target beyond the limit is accepted, or reported with the selector",
            {"selector": FREE | 3, "descriptors": (CODE, 4, 0xFFF, 0)},
        ),
        (
            "far CALL checks the limit of 64-bit code",
            {"name": "call far 32", "selector": FREE, "descriptors": (0x9B, 2, 0xFFF, 0)},
        ),
        ("an absent stack segment is #NP, not #SS", {"stack": FREE | 3, "descriptors": (0x73, 0xC, 0xF_FFFF, 0)}),
        (
            "a null SS is accepted with any RPL and for compatibility mode",
            {"selector": KERNEL_CS, "stack": 3},
        ),
        (
            "a same-level IRET in 64-bit mode drops data segments",
            {"user": True, "data": [0, 0, KERNEL_DS]},
        ),
        ("16-bit task segments exist", {"name": "lar", "selector": FREE, "descriptors": (0x81, 0, 0x67, 0)}),
        ("LTR accepts a null selector", {"name": "ltr", "selector": 0}),
        (
            "the upper half of a system descriptor is not checked",
            {"name": "lldt", "selector": FREE, "descriptors": (0x82, 0, 0x67, 0), "upper": 1 << 40},
        ),
    ],
)
def test_unicorn_still_departs(oracle: Oracle, name: str, change: dict[str, Any]) -> None:
    upper = change.get("upper", 0)
    fields = {key: value for key, value in change.items() if key not in ("descriptors", "upper")}
    first = build_descriptor(*change["descriptors"]) if "descriptors" in change else 0
    example = replace(PLAIN, **fields, descriptors=[first, upper, *[0] * 6])
    assert check(oracle, example)[1] == name
