"""What fixups of 64-bit code do in the guest besides `forms64`, for engines whose exits are dear.

Room: `bt/tactics/x86`. SWAPGS, SYSRET, RDTSC, WRMSR of the FS base, IN of a port that is known to be quiet, and reads
of selectors from copies in the shared page. Which of them an engine allows is its caller's to say; all else is as
elsewhere.
"""

from __future__ import annotations

from typing import Final

from iced_x86 import Code, Instruction, OpKind, Register, RegisterExt

from bt.tactics.tactics import Refused
from bt.tactics.x86 import assemble as asm
from bt.tactics.x86 import serialise
from bt.tactics.x86.forms64 import SELECTOR_READS, SELECTOR_SIZES, Forms64
from bt.tactics.x86.template import Call, Template, joined, scratch
from bt.tactics.x86.window import Ground
from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from paravirt.abi import (
    CROSSING_LEAVE,
    CROSSING_THREAD,
    INTERRUPT_PENDING,
    INVALIDATE_ADDRESS,
    INVALIDATE_BEHIND,
    INVALIDATE_CODE,
    KERNEL_GS_BASE,
    QUIET_PORT,
    QUIET_VALUE,
    RETURN_CODE,
    RETURN_SLOW,
    RETURN_THREAD,
    SELECTORS,
    SHARED_PAGE,
    TIME_BASE,
    TIME_COUNTER,
    TIME_SCALE,
    TIME_SEEN,
)

_RDX: Final = 2
_FS_BASE: Final = 0xC000_0100
_SYSRETQ: Final = bytes.fromhex("480f07")
_IRETQ: Final = bytes.fromhex("48cf")
_TEST: Final = bytes.fromhex("f644242004 7502")
"""test byte [rsp + 32], 4; jne, over what follows."""
_MOST_JUMPS: Final = 3
_NUMBERS: Final = {Register.ES: 0, Register.CS: 1, Register.SS: 2, Register.DS: 3, Register.FS: 4, Register.GS: 5}

CODES: Final = {
    Operation.SWAP_GS: frozenset({int(Code.SWAPGS)}),
    Operation.READ_TIME_STAMP: frozenset({int(Code.RDTSC)}),
    Operation.READ_PORT: frozenset({int(Code.IN_AL_DX)}),
    Operation.WRITE_MODEL_SPECIFIC_REGISTER: frozenset({int(Code.WRMSR)}),
    Operation.INVALIDATE_PAGE: frozenset({int(Code.INVLPG_M)}),
    Operation.READ_SEGMENT_SELECTOR: frozenset(SELECTOR_SIZES),
    Operation.RETURN_FROM_SYSTEM_CALL: frozenset({int(Code.SYSRETQ)}),
}
"""The encodings of each operation that there are templates for."""


class DearForms(Forms64):
    """See `bt.tactics.x86.window.Forms`."""

    def __init__(self, operations: frozenset[Operation]) -> None:
        """`operations` are those of `CODES` that the engine allows."""
        codes = frozenset[int]().union(*(CODES[operation] for operation in operations if operation in CODES))
        self.INLINE_CODES = Forms64.INLINE_CODES | codes
        self.INSTEAD_OF_TRAP = codes
        self.NEVER_FAULTS = codes & CODES[Operation.WRITE_MODEL_SPECIFIC_REGISTER]
        self._returns = Operation.RETURN_FROM_EXCEPTION in operations
        self._selectors = Operation.READ_SEGMENT_SELECTOR in operations

    def reads_own_selector(self, instruction: Instruction) -> bool:
        """None does where the shared page has the guest's selectors."""
        return not self._selectors and super().reads_own_selector(instruction)

    def piece(
        self, ground: Ground, instruction: Instruction, before: list[Template], trials: list[Template]
    ) -> tuple[Template, int]:
        """The template that does a sensitive instruction in the guest, and its bytes. Raises `Refused`."""
        kind, length, end = int(instruction.code), int(instruction.len), int(instruction.next_ip)
        if kind not in self.INSTEAD_OF_TRAP:
            if self._selectors and kind in SELECTOR_READS:
                raise Refused("another sensitive instruction without a fixup stands in the room for a jump")
            return super().piece(ground, instruction, before, trials)
        raw = (ground.code + ground.after)[end - length : end]
        if kind == Code.SWAPGS:
            behind = _leaves(ground, end) if int(Code.SYSRETQ) in self.INSTEAD_OF_TRAP else 0
            if behind:
                return return_by_swap(), length + behind
            return swap_and_return() if self._returns and _goes_back(ground, end) else swap_gs(), length
        if kind == Code.SYSRETQ:
            return return_from_system_call(raw), length
        if kind == Code.INVLPG_M:
            return invalidate_page(instruction, raw), length
        if kind == Code.RDTSC:
            return read_time_stamp(), length
        if kind == Code.IN_AL_DX:
            return read_port(raw), length
        if kind == Code.WRMSR:
            return write_model_specific_register(raw), length
        if instruction.op0_kind != OpKind.REGISTER:
            raise Refused("its page fault would have to lead into the middle of a fixup")
        if instruction.op1_register in (Register.CS, Register.SS):
            whole = super().piece(ground, instruction, before, trials)
            if whole[0].name == serialise.NAME:
                return whole
        size, first = SELECTOR_SIZES[kind]
        return read_selector(instruction.op0_register - first, _NUMBERS[instruction.op1_register], size), length

    def leaving(self, ground: Ground, instruction: Instruction) -> Template | None:
        """Jcc, as its opposite over a jump to its target."""
        if not instruction.is_jcc_short_or_near:
            return None
        raw = ground.code[instruction.next_ip - instruction.len : instruction.next_ip]
        condition = (raw[-2] if instruction.is_jcc_short else raw[-5]) & 15
        code = asm.branch(condition ^ 1, asm.JUMP_LENGTH) + b"\xe9" + bytes(4)
        target = int(instruction.near_branch_target)
        target -= 1 << 64 if target >> 63 else 0
        at = len(code) - 4
        return Template("leave by a branch", code, reference=(at, target), on_registers=True, sensitive=False)


def _word(offset: int) -> int:
    return SHARED_PAGE + offset


def swap_gs() -> Template:
    """SWAPGS: the real base against the word that is the other one."""
    rax = asm.RAX
    code = joined(
        (
            asm.store(scratch(0), rax),
            asm.READ_GS_BASE_RAX,
            asm.exchange(_word(KERNEL_GS_BASE), rax),
            asm.WRITE_GS_BASE_RAX,
            asm.load(rax, scratch(0)),
        )
    )
    return Template("swap GS base", code, scratch=frozenset({0}), changes_view=True)


def _leaves(ground: Ground, at: int) -> int:
    """Bytes of a short jump at offset `at` that leads to SYSRET in the same page and that nothing leads to; 0 for none.

    Linux jumps so over a VERW that its processor does not need, between SWAPGS and SYSRET. It patches that jump when it
    begins, if at all, and never looks at it; whatever it writes there is translated anew.
    """
    jump = ground.code[at : at + asm.SHORT_BRANCH_LENGTH]
    if len(jump) < asm.SHORT_BRANCH_LENGTH or jump[0] != 0xEB or jump[1] > 0x7F or not ground.known:
        return 0
    target = at + asm.SHORT_BRANCH_LENGTH + jump[1]
    if ground.targets >> at & 1 or not ground.boundaries >> at & 1 or at == ground.entry:
        return 0
    return asm.SHORT_BRANCH_LENGTH if ground.code[target : target + len(_SYSRETQ)] == _SYSRETQ else 0


def return_by_swap() -> Template:
    """SWAPGS, a jump, and the SYSRET that it leads to."""
    swap, back = swap_gs(), return_from_system_call(_SYSRETQ)
    (call,) = back.calls
    moved = Call(len(swap.code) + call.offset, call.operation, instruction=call.instruction)
    return Template(
        back.name, swap.code + back.code, (moved,), scratch=swap.scratch | back.scratch, changes_view=True, ends=True
    )


def return_from_system_call(code: bytes) -> Template:
    """SYSRET: by the engine, where the thread is the one that was left, nothing waits, and neither RIP nor RFLAGS is
    out of the ordinary; the hypervisor does all others. `code` is the instruction. It replaces the flags."""
    rax = asm.RAX
    back = asm.load(rax, scratch(0))
    fast = back + bytes.fromhex("ff2425") + asm.displacement(_word(CROSSING_LEAVE))  # jmp [leave]
    checks = (
        asm.READ_FS_BASE_RAX
        + bytes.fromhex("483b0425")
        + asm.displacement(_word(CROSSING_THREAD)),  # cmp rax, [thread]
        bytes.fromhex("833c25") + asm.displacement(_word(INTERRUPT_PENDING)) + b"\0",  # cmp dword [pending], 0
        bytes.fromhex("4889c8 48c1e82f"),  # mov rax, rcx; shr rax, 47
        bytes.fromhex("41f7c3") + (r.FLAG_IOPL | r.FLAG_VIF | r.FLAG_VIP).to_bytes(4, "little"),  # test r11d, ...
    )
    behind = fast
    for check in reversed(checks):
        behind = check + asm.jump_if_not_zero(len(behind)) + behind
    body = asm.store(scratch(0), rax) + behind + back
    call = Call(len(body), Operation.RETURN_FROM_SYSTEM_CALL, instruction=code)
    return Template(
        "return to user code", body + asm.HLT, (call,), scratch=frozenset({0}), changes_view=True, ends=True
    )


def _goes_back(ground: Ground, at: int) -> bool:
    """Whether IRETQ comes next at offset `at`, behind jumps, and a test of the stack's segment: Linux looks whether it
    is in a local descriptor table, which the flat ones that user code has otherwise are not."""
    for _ in range(_MOST_JUMPS):
        jump = ground.code[at : at + asm.JUMP_LENGTH]
        if len(jump) < asm.JUMP_LENGTH or not ground.known:
            return False
        if jump[0] == 0xEB:
            at += asm.SHORT_BRANCH_LENGTH + int.from_bytes(jump[1:2], "little", signed=True)
        elif jump[0] == 0xE9:
            at += asm.JUMP_LENGTH + int.from_bytes(jump[1:], "little", signed=True)
        else:
            break
        if at < 0:
            return False
    return any(ground.code[at : at + len(code)] == code for code in (_TEST + _IRETQ, _IRETQ))


def swap_and_return() -> Template:
    """SWAPGS where IRETQ is next: that as well, by the hypervisor's code at level 3, where the thread is the one that
    was left and nothing waits. Where that code does not do it, it comes back, and the guest goes on to its IRETQ. The
    flags go: what comes next does not look at them."""
    rax, swap = asm.RAX, swap_gs()
    back = asm.load(rax, scratch(0))
    away = asm.store(_word(RETURN_SLOW), rax) + bytes.fromhex("ff2425") + asm.displacement(_word(RETURN_CODE))
    fast = bytes.fromhex("488d05") + len(away).to_bytes(4, "little") + away  # lea rax, [behind]; ...; jmp [...]
    checks = (
        asm.READ_FS_BASE_RAX + bytes.fromhex("483b0425") + asm.displacement(_word(RETURN_THREAD)),  # cmp rax, [thread]
        bytes.fromhex("833c25") + asm.displacement(_word(INTERRUPT_PENDING)) + b"\0",  # cmp dword [pending], 0
    )
    behind = fast
    for check in reversed(checks):
        behind = check + asm.jump_if_not_zero(len(behind)) + behind
    code = swap.code + asm.store(scratch(0), rax) + behind + back
    return Template("swap GS base, and return", code, scratch=frozenset({0}), changes_view=True)


def invalidate_page(instruction: Instruction, code: bytes) -> Template:
    """INVLPG, of an address in a register: by the hypervisor's code at level 3, if there is any. That comes back to the
    HLT for all that it does not do. `code` is the instruction. Raises `Refused` for other operands."""
    number = RegisterExt.number(instruction.memory_base)
    if code[0] != 0x0F or code[2] >> 6 or code[2] & 7 in (4, 5) or len(code) != 3:
        raise Refused("its operand is not an address in one of the first registers")
    rax, rcx = asm.RAX, asm.RCX
    operand = bytes((0x48, 0x8D, number & 7))  # lea rax, [...]
    away = asm.store(_word(INVALIDATE_BEHIND), rax) + asm.load(rax, scratch(0))
    away += asm.store(scratch(1), rcx) + asm.load(rcx, _word(INVALIDATE_CODE))
    jump = bytes.fromhex("ffe1")  # jmp rcx
    restore = asm.load(rcx, scratch(1))
    away += asm.jump_if_rcx_zero(len(jump)) + jump + restore
    body = asm.store(scratch(0), rax) + operand + asm.store(_word(INVALIDATE_ADDRESS), rax)
    body += bytes.fromhex("488d05") + len(away).to_bytes(4, "little") + away  # lea rax, [the HLT]
    call = Call(len(body), Operation.INVALIDATE_PAGE, inside=True, instruction=code)
    return Template("invalidate a page", body + asm.HLT, (call,), scratch=frozenset({0, 1}), changes_view=True)


def read_time_stamp() -> Template:
    """RDTSC: virtual time, by the real counter since the hypervisor looked at both."""
    rax, rdx = asm.RAX, _RDX
    code = joined(
        (
            asm.RDTSC,
            asm.store_half(scratch(0), rax),
            asm.store_half(scratch(0) + 4, rdx),
            asm.load(rax, scratch(0)),
            asm.load(rdx, _word(TIME_COUNTER)),
            asm.add(rax, rdx),
            asm.load(rdx, _word(TIME_SCALE)),
            asm.MULTIPLY_RDX_RAX,
            asm.store(scratch(0), rax),
            asm.store(scratch(1), rdx),
            asm.load(rax, scratch(0) + 4),  # the product, 32 bits further down
            asm.load(rdx, _word(TIME_BASE)),
            asm.add(rax, rdx),
            asm.store(_word(TIME_SEEN), rax),
            asm.load_half(rdx, _word(TIME_SEEN) + 4),
            asm.load_half(rax, _word(TIME_SEEN)),
        )
    )
    return Template("read time stamp", code, scratch=frozenset({0, 1}), changes=frozenset({rax, rdx}), repeatable=True)


def read_port(code: bytes) -> Template:
    """IN AL, DX: from the shared page where DX is the quiet port, and else IN itself, which exits; `code` is it."""
    rax, rcx = asm.RAX, asm.RCX
    restore = asm.load(rcx, scratch(0))
    quiet = asm.load_byte(rax, _word(QUIET_VALUE)) + restore
    other = restore + code + asm.skip(len(quiet))
    head = joined(
        (
            asm.store(scratch(0), rcx),
            asm.load(rcx, _word(QUIET_PORT)),
            asm.add(rcx, _RDX),
            asm.extend_half(rcx, rcx),
            asm.jump_if_rcx_zero(len(other)),
        )
    )
    return Template("read a port", head + other + quiet, scratch=frozenset({0}), changes=frozenset({rax}))


def write_model_specific_register(code: bytes) -> Template:
    """WRMSR: the FS base, to an address of the lower half, by WRFSBASE; the hypervisor does all others and may refuse
    them. `code` is the instruction."""
    rax, rcx, rdx = asm.RAX, asm.RCX, _RDX
    restore = asm.load(rcx, scratch(0))
    write = joined((asm.store_half(scratch(1), rax), asm.store_half(scratch(1) + 4, rdx), asm.load(rcx, scratch(1))))
    write += asm.WRITE_FS_BASE_RCX + restore
    other = restore + asm.HLT + asm.skip(len(write))
    check = joined(
        (
            asm.move_half(rcx, rdx),
            asm.add(rcx, rcx),
            asm.store(scratch(1), rcx),
            asm.load_half(rcx, scratch(1) + 2),  # bits 47 to 63 of the value
            asm.jump_if_rcx_zero(len(other)),
        )
    )
    head = joined(
        (
            asm.store(scratch(0), rcx),
            asm.less_half(rcx, _FS_BASE),
            asm.jump_if_rcx_zero(2),
            asm.skip(len(check)),
            check,
        )
    )
    call = Call(len(head) + len(restore), Operation.WRITE_MODEL_SPECIFIC_REGISTER, inside=True, instruction=code)
    return Template("write the FS base", head + other + write, (call,), scratch=frozenset({0, 1}), changes_view=True)


def read_selector(register: int, segment: int, size: int) -> Template:
    """MOV r, sreg, `size` bytes wide, by the copy in the shared page."""
    at = _word(SELECTORS) + 8 * segment
    code = asm.load_word(register, at) if size == 2 else asm.extend_word(register, at)
    return Template("read a copied selector", code, changes=frozenset({register}), repeatable=True)
