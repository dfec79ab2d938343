"""Experiments at start-up: what the host's KVM does where the manuals leave no doubt, found by doing it.

Room: `emulator/engine/kvm`. Each experiment is a few instructions at level 3 in a machine of its own, on the
engine itself as if the host had no quirk at all. Made once a process, in a few milliseconds.
"""

import functools
import mmap
import struct
import time
from dataclasses import replace

from emulator.engine.crossing import NOWHERE, Crossing
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.kvm import api, counter
from emulator.engine.kvm.engine import KvmEngine
from emulator.engine.kvm.findings import Findings
from emulator.errors import EngineMissing, GuestFault
from emulator.isa.x86 import registers as r

_CODE, _DATA, _OTHER, _STACK, _SPARE = 0x1000, 0x2000, 0x3000, 0x4800, 0x5000
ROOT, OTHER_ROOT, _LOWEST = 0x8000, 0x7000, 0xB000
_SIZE = 0x10000
_UD2 = "0f0b"
_CR0 = r.CR0_PE | r.CR0_ET | r.CR0_NE | r.CR0_WP | r.CR0_PG
_CR4 = r.CR4_PAE | r.CR4_OSFXSR
_EFER = r.EFER_LME | r.EFER_LMA | r.EFER_NXE | r.EFER_SCE
_ROUNDS = 40
_CROSSINGS = 8
_SHOWN, _NUMBER = 0x40, 0x5A
"""Offset of a descriptor that no host's table has for user code; a processor that no host has."""
Seen = tuple[ExitKind, int, int, int]
"""Kind, vector, error code, offset of RIP in the code."""


class Bench:
    """A machine for experiments: identity-mapped pages of code and data at level 3."""

    def __init__(self, findings: Findings) -> None:
        self.engine = KvmEngine(findings)
        self.memory = memoryview(mmap.mmap(-1, _SIZE))
        self.words = self.memory.cast("Q")
        for level in range(3):
            self.words[ROOT + level * 4096 >> 3] = ROOT + (level + 1) * 4096 | 7
        for page in range(_SIZE >> 12):
            self.page(page << 12, page << 12 | 7)
        self.engine.map_memory(0, self.memory)
        self.engine.set_root(ROOT)

    def page(self, address: int, entry: int) -> int:
        """Set the entry of a page; returns where the entry lies."""
        at = _LOWEST + (address >> 12) * 8
        self.words[at >> 3] = entry
        return at

    def start(self, code: str, flags: int = r.FLAG_IF, cr0: int = _CR0, cr4: int = _CR4) -> None:
        """Put code there, and the registers in order."""
        raw = bytes.fromhex(code)
        self.memory[_CODE : _CODE + len(raw)] = raw
        state = self.engine.registers
        self.engine.set_control(cr0, cr4, _EFER)
        state.set_segment(r.CS, 0x33, 0, 0xFFFF_FFFF, 0x20FB00 | 1 << 23)
        for index in (r.ES, r.SS, r.DS, r.FS, r.GS):
            state.set_segment(index, 0x2B, 0, 0xFFFF_FFFF, 0xC0F300)
        for index in range(16):
            state.gpr[index] = 0
        state.gpr[r.RSP], state.rip, state.rflags, state.privilege = _STACK, _CODE, flags | r.FLAG_FIXED, 3

    def go(self) -> Seen:
        """Run to the next exit."""
        seen: list[Seen] = []

        def handler(exit_: Exit) -> None:
            seen.append((ExitKind(exit_.kind), exit_.vector, exit_.error, self.engine.registers.rip - _CODE))
            self.engine.stop()

        self.engine.run(handler)
        return seen[0]

    def see(self, code: str, flags: int = r.FLAG_IF, cr0: int = _CR0, cr4: int = _CR4) -> Seen:
        """Run code to its first exit."""
        self.start(code, flags, cr0, cr4)
        return self.go()

    def loads(self) -> int | None:
        """What a load from the data page gives; None where it faults."""
        kind, vector, _, _ = self.see("488b042500200000" + _UD2)
        assert kind is ExitKind.FAULT
        return int(self.engine.registers.gpr[r.RAX]) if vector == 6 else None


@functools.cache
def findings_of_host() -> Findings:
    """What is found of this host's KVM. Raises `EngineMissing` where it does not run code at level 3."""
    bench = Bench(Findings(flush_by_control=False, flush_by_table=True))
    try:
        return _probe(bench)
    except GuestFault as fault:
        raise EngineMissing(
            f"KVM does not run a few instructions at level 3 ({fault}); run the guest with --engine unicorn"
        ) from None
    finally:
        bench.engine.close()


def _probe(bench: Bench) -> Findings:
    _smoke(bench)
    found = Findings(**_instructions(bench))
    found = replace(found, **_translations(bench))
    cost, native = _speed(bench)
    found = replace(found, exit_cost=cost, native_speed=native)
    return replace(found, crosses=_crosses(bench, found))


def _smoke(bench: Bench) -> None:
    """Level 3 works at all: an undefined instruction, a privileged one and a page fault arrive as they should."""
    for code, expected in (
        ("90" + _UD2, (ExitKind.FAULT, 6, 1)),
        ("9090fa", (ExitKind.FAULT, 13, 2)),
        ("488b0425000f0000", (ExitKind.FAULT, 14, 0)),
    ):
        if code.endswith("0f0000"):
            bench.page(0, 0)
        kind, vector, _, at = bench.see(code)
        if (kind, vector, at) != expected:
            raise EngineMissing(
                f"KVM does not deliver exceptions of level 3: {code} gave {kind.name} {vector} at {at}; "
                "run the guest with --engine unicorn"
            )


def _instructions(bench: Bench) -> dict[str, bool]:
    """Single instructions, by name of the finding."""
    engine, state = bench.engine, bench.engine.registers
    see = bench.see
    found: dict[str, bool] = {}
    see("cd80")
    found["int_is_undefined"] = engine.raw_vector == 6
    see("cc")
    found["breakpoint_ignores_gate"] = engine.raw_vector == 3
    see("0f05")
    found["system_call_keeps_level"] = engine.raw_vector == 14
    found["int1_at_instruction"] = see("90f1" + _UD2)[3] == 1
    see("9c58" + _UD2, flags=0)
    found["interrupt_flag_shown"] = bool(state.gpr[r.RAX] & r.FLAG_IF)
    found["time_stamp_faults"] = see("0f31" + _UD2, cr4=_CR4 | r.CR4_TSD)[1] == 13
    found["task_switched_faults"] = see("0f57c0" + _UD2, cr0=_CR0 | r.CR0_TS)[1] == 7
    found["bases_open"] = see("f3480faec0" + _UD2)[3] == 5
    found["wide_vectors_open"] = see("c5fd6fc0" + _UD2)[3] == 4
    found["tables_fault"] = all(see(code + _UD2)[1] == 13 for code in ("0f01042500200000", "0f00c8", "0f01e0"))
    bench.start("8cc8 8cd3" + _UD2)  # mov eax, cs; mov ebx, ss
    state.set_segment(r.CS, 0x13, 0, 0xFFFF_FFFF, 0x20FB00 | 1 << 23)
    state.set_segment(r.SS, 0x1B, 0, 0xFFFF_FFFF, 0xC0F300)
    bench.go()
    found["host_selectors_shown"] = (state.gpr[r.RAX], state.gpr[r.RBX]) != (0x13, 0x1B)
    found["host_segments_open"] = see("66b82b00 8ed8" + _UD2)[1] == 6
    found |= _user_code(bench)
    found["counter_is_hosts"] = not found["time_stamp_faults"] and _counts(bench)
    found["identify_is_hosts"], found["identify_faults"] = _identify(bench)
    return found


def _user_code(bench: Bench) -> dict[str, bool]:
    """What user code sees that its kernel has no say in, by name of the finding."""
    engine, state = bench.engine, bench.engine.registers
    engine.show_segments(bytes(_SHOWN) + (0x00CF_F300_0000_FFFF).to_bytes(8, "little"))
    bench.see(f"b8{_SHOWN | 3:02x}000000 0f02d8" + _UD2)  # mov eax, selector; lar ebx, eax
    seen = {"descriptors_are_hosts": not state.rflags & r.FLAG_ZF}
    engine.show_segments(b"")
    taken = engine.set_processor_number(_NUMBER)
    at = bench.see("0f01f9" + _UD2)[3]
    seen["processor_shown"] = at == 3 and not (taken and state.gpr[r.RCX] == _NUMBER)
    engine.set_processor_number(0)
    seen["calls_answered"] = any(bench.see(code + _UD2)[3] == 3 for code in ("0f01c1", "0f01d9"))
    bench.start("d9e8" + _UD2)
    state.set_segment(r.CS, 0x23, 0, 0xFFFF_FFFF, 0xCFFB00)
    seen["compatibility_interpreted"] = bench.go()[3] != 2
    return seen


def _counts(bench: Bench) -> bool:
    """Whether RDTSC shows the counter of this process, and MULX multiplies."""
    before = counter.read()
    # rdtsc; mov ebx, eax; mov ecx, edx; mov edx, 3; mov eax, 5; mulx rsi, rdi, rax
    _, vector, _, at = bench.see("0f31 89c3 89d1 ba03000000 b805000000 c4e2c3f6f0" + _UD2)
    gpr, after = bench.engine.registers.gpr, counter.read()
    shown = gpr[r.RBX] | gpr[r.RCX] << 32
    return (vector, at, gpr[r.RDI]) == (6, 21, 15) and before <= shown <= after


def _identify(bench: Bench) -> tuple[bool, bool]:
    """Whether CPUID shows the host's leaf 1, and whether it can be made to fault."""
    bench.start("0fa2" + _UD2)
    state = bench.engine.registers
    state.gpr[r.RAX] = 1
    bench.go()
    shown = int(state.gpr[r.RCX]) & ~(1 << 27)
    expected = bench.engine.leaf(1)[2] & ~(1 << 27)  # OSXSAVE follows CR4
    faults = bench.engine.identify_faults(True) and bench.see("0fa2" + _UD2)[1] == 13
    bench.engine.identify_faults(False)
    return shown != expected, faults


def _translations(bench: Bench) -> dict[str, bool]:
    """How an entry that the host changed is forgotten."""
    words, engine = bench.words, bench.engine
    words[_DATA >> 3], words[_OTHER >> 3], words[_SPARE >> 3] = 1, 2, 3

    def changed(flush: str) -> bool:
        """Whether the change of an entry is seen after flushing in a way."""
        at = bench.page(_DATA, _DATA | 7)
        engine.forget_translations()
        assert bench.loads() == 1
        bench.page(_DATA, _OTHER | 7)
        if flush == "control":
            engine.flip_control()
        elif flush == "page":
            engine.take_page(_DATA)
        elif flush == "store":
            engine.store_entry(at)
        elif flush == "table":
            engine.forget_table(at & ~0xFFF)
        return bench.loads() == 2

    found = {f"flush_by_{way}": changed(way) for way in ("control", "page", "store", "table")}
    bench.page(_DATA, _DATA | 7)
    engine.forget_translations()
    if bench.loads() != 1:
        raise EngineMissing("KVM keeps translations that it was told to forget; run the guest with --engine unicorn")
    found["looks_again"] = _looks_again(bench)
    found["code_is_coherent"] = _coherent(bench)
    return found


def _looks_again(bench: Bench) -> bool:
    """Whether a store succeeds by an entry that forbade the last one, and that the host has changed since."""
    bench.page(_DATA, _DATA | 5)
    bench.engine.forget_translations()
    store = "c704250020000001000000" + _UD2  # mov dword [data], 1
    refused = bench.loads() == 1 and bench.see(store)[1] == 14
    bench.page(_DATA, _DATA | 7)
    stored = bench.see(store)[1] == 6
    bench.engine.forget_translations()
    return refused and stored


def _coherent(bench: Bench) -> bool:
    """Whether a store to the instruction behind it is executed, through another mapping of the page."""
    bench.page(_SPARE, _CODE | 3 | 4)
    # mov byte [spare + 9], 2; mov eax, 1
    bench.see("c604250950000002" + "b801000000" + _UD2)
    once = bench.engine.registers.gpr[r.RAX]
    bench.memory[_CODE + 9] = 3
    bench.engine.registers.rip = _CODE + 8
    bench.go()
    return (once, bench.engine.registers.gpr[r.RAX]) == (2, 3)


def lay_kernel(bench: Bench, code: str = "") -> Crossing:
    """A kernel in page tables of its own that counts its entries in the other page, does `code`, and leaves."""
    bench.words[OTHER_ROOT >> 3] = bench.words[ROOT >> 3]
    frame, _ = bench.engine.call_frame
    # mov r11, rsp; inc qword [other]; mov r8, rax; mov rax, [frame + 32]; mov rsp, rax; mov rax, r8
    # mov rcx, [saved]; leave: div dword [zero]
    text = bytes.fromhex("4989e3 48ff042500300000 4989c0 48a1") + struct.pack("<Q", frame + 32)
    text += bytes.fromhex("4889c4 4c89c0 488b0c2500200000" + code)
    entry, leave = _CODE + 256, _CODE + 256 + len(text)
    text += bytes.fromhex("f73425") + struct.pack("<I", leave + 8) + bytes(8)
    bench.memory[entry : entry + len(text)] = text
    return Crossing(entry, leave, _DATA, leave, 0x33)


def _crosses(bench: Bench, found: Findings) -> bool:
    """Whether user code gets into a kernel and back without an exit, and faster than by two. Only a form that can be
    seen to work here is there: SYSCALL that stays in user mode, with the host's selectors shown."""
    if not (found.system_call_keeps_level and found.host_selectors_shown and found.bases_open):
        return False
    engine, words = bench.engine, bench.words
    engine.lead_crossing(lay_kernel(bench), lambda _user: None)
    costs = []
    for _ in range(4):
        words[_OTHER >> 3] = 0
        # mov edx, rounds; again: syscall; dec edx; jnz again; ud2
        bench.start(f"ba{_CROSSINGS:02x}000000 0f05 ffca 75fa" + _UD2)
        engine.open_crossing(OTHER_ROOT, ROOT)
        begin = time.perf_counter_ns()
        kind, vector, _, at = bench.go()
        costs.append(time.perf_counter_ns() - begin)
        if (kind, vector, at, words[_OTHER >> 3]) != (ExitKind.FAULT, 6, 11, _CROSSINGS):
            break
    safe = len(costs) == 4 and leaves_harmlessly(bench)
    engine.lead_crossing(NOWHERE, lambda _user: None)
    engine.set_root(ROOT)
    return safe and min(costs) / 1000 < 2 * _CROSSINGS * found.exit_cost


def leaves_harmlessly(bench: Bench) -> bool:
    """Whether a kernel that leaves to an address that is none faults at level 3. Some processors' SYSRET faults at
    level 0, whose frame is pushed where the RSP leads that the kernel chose: into the engine's own tables, say."""
    stack, nowhere = _SPARE + 0x800, 1 << 47
    chosen = b"\x48\xb9" + nowhere.to_bytes(8, "little") + b"\x48\xbc" + stack.to_bytes(8, "little")  # mov rcx; mov rsp
    bench.engine.lead_crossing(lay_kernel(bench, chosen.hex()), lambda _user: None)
    bench.start("0f05" + _UD2)
    bench.engine.open_crossing(OTHER_ROOT, ROOT)
    before = bytes(bench.memory[_SPARE : _SPARE + 4096])
    found = bench.go()
    return found == (ExitKind.FAULT, 13, 0, nowhere - _CODE) and bench.memory[_SPARE : _SPARE + 4096] == before


def _speed(bench: Bench) -> tuple[float, bool]:
    """Microseconds of a trap, the quickest of many, and whether a loop of level 3 runs at a processor's speed."""
    bench.start("fa")
    costs: list[int] = []
    engine, last = bench.engine, 0

    def handler(_exit: Exit) -> None:
        nonlocal last
        now = time.perf_counter_ns()
        costs.append(now - last)
        last = now
        if len(costs) > _ROUNDS:
            engine.stop()

    engine.run(handler)
    bench.start("b900000200" + "ffc9" + "75fc" + _UD2)  # 131072 rounds
    begin = time.perf_counter_ns()
    bench.go()
    taken = time.perf_counter_ns() - begin
    return round(min(costs[1:]) / 1000, 1), taken < 10_000_000


__all__ = ["Bench", "api", "findings_of_host", "lay_kernel", "leaves_harmlessly"]
