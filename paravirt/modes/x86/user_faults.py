"""Page faults of user code without an exit: code in the kernel's view that sees whose a fault is, and delivers it.

Room: `paravirt/modes/x86`, for `crossing`. The engine leads a page fault of user code here, at level 3 in the kernel's
tables. A fault that the guest's own tables say is delivered as the processor would; any other ends in a HLT, for the
hypervisor to fill. The code sees nothing but the guest's memory and the frame of the fault, may do no more than the
guest's kernel may, and leaves whatever is unusual (large pages, reserved bits, another gate than was seen) to the
hypervisor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from emulator.isa.x86 import registers as r
from emulator.isa.x86.descriptors import gate_parts
from emulator.isa.x86.processor import Fault
from paravirt import abi
from paravirt.modes.x86.machine_code import MachineCode, half, whole
from paravirt.modes.x86.vcpu import X86VirtualCpu

_PF: Final = 14
ERROR, RIP, FLAGS, RSP, ADDRESS, COUNT, TARGET = (abi.CROSSING_FAULT + 8 * number for number in range(7))
_RAX, _RDX, _RBX, _RSI, _RDI, _R8, _R9, _STACK = (abi.CROSSING_REGISTERS + 8 * number for number in range(8))
_HOLE: Final = 0x8000_0000_0000
_KEPT: Final = r.FLAGS_STATUS | r.FLAG_DF | r.FLAG_AC | r.FLAG_ID
"""Flags with which a handler begins as user code had them."""
_REGISTERS: Final = (
    ("48890425", "488b0425", _RAX),
    ("48891425", "488b1425", _RDX),
    ("48891c25", "488b1c25", _RBX),
    ("48893425", "488b3425", _RSI),
    ("48893c25", "488b3c25", _RDI),
    ("4c890425", "4c8b0425", _R8),
    ("4c890c25", "4c8b0c25", _R9),
)
"""How each register is stored and loaded, and its word. RCX and R11 are saved by the engine."""
KEPT: Final = (
    *((r.RAX, _RAX), (r.RDX, _RDX), (r.RBX, _RBX), (r.RSI, _RSI), (r.RDI, _RDI), (r.R8, _R8), (r.R9, _R9)),
    *((r.RCX, abi.CROSSING_SAVED), (r.R11, abi.CROSSING_SAVED + 8)),
)
"""Where the registers of user code are while the code here uses them."""
STORES: Final = 8 * len(_REGISTERS)
"""Bytes of code at whose end they are there."""


@dataclass(frozen=True, slots=True)
class Handler:
    """The guest's handler of page faults, as its tables have it."""

    gate: int
    """Guest-virtual address of its gate."""
    words: tuple[int, int]
    """The gate's contents."""
    target: int
    selector: int
    stack: int
    """Guest-virtual address of the stack pointer in the TSS."""


def handler_of(vcpu: X86VirtualCpu) -> Handler | None:
    """The guest's handler, where it is such as the code here can enter: an interrupt gate to the kernel's code segment,
    on the stack of level 0."""
    gate, (_, task, limit, _) = vcpu.idt_base + 16 * _PF, vcpu.segment(r.TR)
    if vcpu.idt_limit < 16 * _PF + 15 or gate + _HOLE >> 48 & 0xFFFF or gate & 7 or task + _HOLE >> 48 & 0xFFFF:
        return None
    if limit < 11 or not vcpu.efer & r.EFER_NXE:
        return None
    try:
        low, high = vcpu.read(gate, 8), vcpu.read(gate + 8, 8)
    except Fault:
        return None
    (selector, target, stack, _), kernel = gate_parts(low, high), vcpu.star >> 32 & 0xFFFC
    if low >> 40 & 0xFF != 0x8E or stack or selector != kernel or target + _HOLE >> 48 & 0xFFFF or high >> 32:
        return None
    return Handler(gate, (low, high), target, selector, task + 4)


_JE, _JNE, _JAE, _JNS, _JMP = "0f84", "0f85", "0f83", "0f89", "e9"


def fault_code(handler: Handler, shown: tuple[int, int], size: int, user_data: int, copies: bool) -> tuple[bytes, int]:
    """The code, and the offset in it of the HLT behind which the hypervisor decides. `shown` is `show_memory`'s answer
    for `size` bytes, and where a trap's frame is; `user_data` the only selector in SS that user code may have;
    `copies`: the shared page has copies of selectors."""
    memory, frame = shown
    code = MachineCode()
    for store, _, word in _REGISTERS:
        code.shared(store, word)
    code.shared("48892425", ADDRESS)  # mov [...], rsp
    code.shared("48c70425", abi.INTERRUPT_DELTA, half(abi.INTERRUPTS_DISABLED))
    code.plain("48bb", whole(frame))  # mov rbx, frame
    code.plain("488b4308")  # mov rax, [rbx + 8]
    code.shared("48890425", RIP)
    code.plain("488b4318")  # mov rax, [rbx + 24]
    code.shared("48890425", FLAGS)
    code.plain("488b4320")  # mov rax, [rbx + 32]
    code.shared("48890425", RSP)
    code.plain("4c8b4b28")  # mov r9, [rbx + 40]
    code.plain("488b1b")  # mov rbx, [rbx]
    code.shared("48891c25", ERROR)
    code.plain("4181f9", half(user_data))  # cmp r9d, selector
    code.jump(_JNE, "slow")
    code.plain("f6c304")  # test bl, user
    code.jump(_JE, "slow")
    code.plain("f7c3", half(~0x17))  # test ebx, all but what is known
    code.jump(_JNE, "slow")
    code.shared("488b1425", ADDRESS)  # mov rdx, [...]
    _walk(code, memory, size)
    _judge(code)
    _deliver(code, handler, user_data, copies)
    code.here("slow")
    for _, load, word in _REGISTERS:
        code.shared(load, word)
    code.shared("488b0c25", abi.CROSSING_SAVED)
    code.shared("4c8b1c25", abi.CROSSING_SAVED + 8)
    code.here("halt")
    code.plain("f4")
    return code.finish(), code.places["halt"]


def _walk(code: MachineCode, memory: int, size: int) -> None:
    """Walk the guest's tables for RDX: RDI has what all entries have, R8 what any has."""
    code.shared("488b0425", abi.CONTROL_REGISTERS + 0x18)  # mov rax, [cr3]
    code.plain("4825", half(~0xFFF))  # and rax, ...
    code.plain("48b9", whole(memory))  # mov rcx, ...
    code.plain("be", half(size))  # mov esi, ...
    code.plain("49b9", whole(0x000F_FFFF_FFFF_F000))  # mov r9, ...
    code.plain("4883cfff 4531c0")  # or rdi, -1; xor r8d, r8d
    for shift in (39, 30, 21, 12):
        code.plain("4839f0")  # cmp rax, rsi
        code.jump(_JAE, "slow")
        # add rax, rcx; mov r11, rdx; shr r11, ...; and r11d, 0xff8; mov rax, [rax + r11]
        code.plain("4801c8 4989d3 49c1eb", bytes((shift - 3,)), bytes.fromhex("4181e3f80f0000 4a8b0418"))
        code.plain("a801")  # test al, present
        code.jump(_JE, "absent")
        code.plain("4821c7 4909c0")  # and rdi, rax; or r8, rax
        if shift > 12:
            code.plain("a880")  # test al, large
            code.jump(_JNE, "slow")
        code.plain("4c21c8")  # and rax, r9
    code.plain("48c1e824")  # shr rax, 36
    code.jump(_JNE, "slow")


def _judge(code: MachineCode) -> None:
    """Whether the guest's tables forbid what was tried: its own error code is in EBX then."""
    code.plain("f6c302")  # test bl, write
    code.jump(_JE, "read")
    code.plain("40f6c702")  # test dil, writable
    code.jump(_JE, "own")
    code.here("read")
    code.plain("40f6c704")  # test dil, user
    code.jump(_JE, "own")
    code.plain("f6c310")  # test bl, fetch
    code.jump(_JE, "slow")
    code.plain("4d85c0")  # test r8, r8: its sign forbids execution
    code.jump(_JNS, "slow")
    code.here("own")
    code.plain("83e312 83cb05")  # and ebx, write | fetch; or ebx, user | present
    code.jump(_JMP, "deliver")
    code.here("absent")
    code.plain("83e312 83cb04")


def _deliver(code: MachineCode, handler: Handler, user_data: int, copies: bool) -> None:
    """Enter the handler, if it is still there."""
    code.here("deliver")
    code.plain("48b9", whole(handler.gate))  # mov rcx, ...
    code.plain("48b8", whole(handler.words[0]))  # mov rax, ...
    code.plain("483901")  # cmp [rcx], rax
    code.jump(_JNE, "slow")
    code.plain("817908", half(handler.words[1]))  # cmp dword [rcx + 8], ...
    code.jump(_JNE, "slow")
    code.plain("48b9", whole(handler.stack))
    code.plain("488b09 4883e1f0")  # mov rcx, [rcx]; and rcx, -16
    code.plain("48c741f8", half(user_data))  # mov qword [rcx - 8], ...
    code.shared("488b0425", RSP)
    code.plain("488941f0")  # mov [rcx - 16], rax
    code.shared("488b0425", FLAGS)
    # mov r8, rax; or eax, RF; and eax, ~IOPL; mov [rcx - 24], rax
    code.plain("4989c0 0d", half(r.FLAG_RF), b"\x25", half(~r.FLAG_IOPL), bytes.fromhex("488941e8"))
    code.plain("48c741e0", half(user_data + 8))  # mov qword [rcx - 32], ...
    code.shared("488b0425", RIP)
    code.plain("488941d8 488959d0 488d49d0")  # mov [rcx - 40], rax; mov [rcx - 48], rbx; lea rcx, [rcx - 48]
    code.shared("48891425", abi.CONTROL_REGISTERS + 0x10)  # mov [cr2], rdx
    if copies:
        code.shared("48c70425", abi.SELECTORS + 8 * r.CS, half(handler.selector))
        code.shared("48c70425", abi.SELECTORS + 8 * r.SS, half(0))
    code.shared("48ff0425", COUNT)  # inc qword [...]
    # and r8d, ...; or r8d, ...; mov [...], r8; mov rsp, ...; popfq; mov rsp, rcx
    code.plain("4181e0", half(_KEPT), bytes.fromhex("4181c8"), half(r.FLAG_IF | r.FLAG_FIXED))
    code.shared("4c890425", _STACK)
    code.shared("48c7c4", _STACK)
    code.plain("9d 4889cc")
    for _, load, word in _REGISTERS:
        code.shared(load, word)
    code.shared("488b0c25", abi.CROSSING_SAVED)
    code.shared("4c8b1c25", abi.CROSSING_SAVED + 8)
    code.shared("ff2425", TARGET)  # jmp [...]
