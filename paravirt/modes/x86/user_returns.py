"""IRETQ to user code without an exit: code in the kernel's view makes the entry that the access will miss.

Room: `paravirt/modes/x86`, for `crossing`. Behind the fixup of a SWAPGS that IRETQ follows, code at level 3 looks
whether the guest's handler of a page fault goes back to where the fault was, walks the guest's tables and the shadow,
and makes of the guest's entry what the hypervisor would (`X86Shadow.fill_around`). The engine stores that and does
IRETQ. Anything unusual goes on to the IRETQ, which exits. So for INVLPG of a page of user code. What is done here may
do no harm but to the guest that does it: the engine stores in user code's last-level tables alone, and the hypervisor
looks at what was noted of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from emulator.isa.x86 import registers as r
from paravirt import abi
from paravirt.modes.x86.machine_code import MachineCode, half, whole
from paravirt.modes.x86.user_faults import ADDRESS, COUNT, ERROR, RIP

SEEN, RETURNS, ROOT, LOGGED, _FLAGS, _RSP, KERNEL_RSP, ROOT_OF = (abi.RETURN_WORDS + 8 * number for number in range(8))
"""Words: faults that were looked at; IRETQs done; user code's root table, as an offset in the pool; entries noted; what
the code keeps; and the guest's CR3 whose root that is."""
INVALIDATE, ADDRESS_OF, BEHIND, KERNEL_ROOT, LISTED, WAITING, KEPT_FLAGS, _KEPT_RSP, _KEPT_RAX = (
    abi.INVALIDATE_WORDS + 8 * number for number in range(9)
)
"""Words: where the code for INVLPG is; its operand; the HLT of the fixup, behind which it goes on; the kernel's root
table; addresses noted, and of these those for which user code's tables were not mended; and what the code keeps."""
_RCX, _RDX, _RBX, _RSI, _RDI, _R8, _R9, _R10, _R11 = (abi.RETURN_REGISTERS + 8 * number for number in range(9))
SAVED: Final = (abi.SCRATCH, _RCX, _RDX, _RSI, _RDI)
"""Words with RAX, RCX, RDX, RSI and RDI as user code had them."""
_OTHERS: Final = (
    *((r.RCX, _RCX), (r.RDX, _RDX), (r.RBX, _RBX), (r.RSI, _RSI), (r.RDI, _RDI)),
    *((r.R8, _R8), (r.R9, _R9), (r.R10, _R10), (r.R11, _R11)),
)
KEPT: Final = (*_OTHERS, (r.RSP, KERNEL_RSP))
"""Where registers are while the code uses them; RAX is put back by the fixup."""
KEPT_OF_INVALIDATION: Final = (*_OTHERS, (r.RAX, _KEPT_RAX), (r.RSP, _KEPT_RSP))
STORES: Final = 80
"""Bytes of code at whose end they are there."""
STORES_OF_INVALIDATION: Final = 104
MOST: Final = 32
"""Entries that can be noted."""
_NEIGHBOURS: Final = 2
"""Of the pages around that would be mapped ahead, more than so many are worth an exit."""
_REGISTERS: Final = (
    ("48890c25", "488b0c25", _RCX),
    ("48891425", "488b1425", _RDX),
    ("48891c25", "488b1c25", _RBX),
    ("48893425", "488b3425", _RSI),
    ("48893c25", "488b3c25", _RDI),
    ("4c890425", "4c8b0425", _R8),
    ("4c890c25", "4c8b0c25", _R9),
    ("4c891425", "4c8b1425", _R10),
    ("4c891c25", "4c8b1c25", _R11),
)
_USUAL: Final = r.FLAGS_STATUS | r.FLAG_DF | r.FLAG_IF | r.FLAG_RF | r.FLAG_AC | r.FLAG_ID | r.FLAG_FIXED
_FRAME: Final = 40
_AROUND: Final = 16
_USED: Final = 0x25
"""Present, for user code, accessed."""
_READ, _WRITE = 0x65, 0x67
_NO_EXECUTE: Final = 1 << 63
_FRAME_MASK: Final = 0x000F_FFFF_FFFF_F000
_JE, _JNE, _JA, _JAE, _JB, _JMP, _JS = "0f84", "0f85", "0f87", "0f83", "0f82", "e9", "0f88"


@dataclass(frozen=True, slots=True)
class Shown:
    """Where code at level 3 reads what the hypervisor decides by."""

    memory: int
    """Guest-virtual address of the guest's memory."""
    size: int
    """Bytes of it."""
    tables: int
    """Of the shadow tables."""
    tables_at: int
    """Their engine-physical address."""
    tables_size: int
    sources: int
    """Of what each table mirrors: a frame's number, of 32 bits."""
    blocks: int
    """Of blocks of sixteen entries of the guest's."""
    kinds: int
    """Of what each frame is, a byte each."""


def return_code(shown: Shown, user_code: int) -> tuple[bytes, int, int]:
    """The code, and the offsets in it of the HLTs at which the engine is to store RAX, or the block at the offset RAX,
    at the offset RCX of the tables, and to go to RDX at level 3. `user_code` is the only selector in CS that user code
    may have, and what is 8 less in SS."""
    code = MachineCode()
    for store, _, word in _REGISTERS:
        code.shared(store, word)
    code.shared("48892425", KERNEL_RSP)
    _frame(code, user_code)
    _walk(code, shown)
    _entry(code, shown)
    _around(code)
    code.plain("4d01d8 4d89c3")  # add r8, r11; mov r11, r8
    _note(code)
    _go(code)
    code.here("halt")
    code.plain("f4")
    _together(code, shown)
    _note(code)
    _go(code)
    code.here("halt together")
    code.plain("f4")
    code.here("slow")
    for _, load, word in _REGISTERS:
        code.shared(load, word)
    code.shared("ff2425", abi.RETURN_SLOW)  # jmp [...]
    return code.finish(), code.places["halt"], code.places["halt together"]


def _frame(code: MachineCode, user_code: int) -> None:
    """Whether IRETQ finds an ordinary frame, and a page fault of user code ends by it. RSI is the fault's address."""
    code.plain("89e0 25ff0f0000 3d", half(4096 - _FRAME))  # mov eax, esp; and eax, 0xfff; cmp eax, ...
    code.jump(_JA, "slow")
    code.plain("48817c2408", half(user_code))  # cmp qword [rsp + 8], ...
    code.jump(_JNE, "slow")
    code.plain("48817c2420", half(user_code - 8))  # cmp qword [rsp + 32], ...
    code.jump(_JNE, "slow")
    code.plain("488b4c2410 4889c8 48c1e820")  # mov rcx, [rsp + 16]; mov rax, rcx; shr rax, 32
    code.jump(_JNE, "slow")
    code.plain("f7c1", half(~_USUAL))  # test ecx, ...
    code.jump(_JNE, "slow")
    code.plain("f7c1", half(r.FLAG_IF))
    code.jump(_JE, "slow")
    code.plain("81e1", half(_USUAL & ~r.FLAG_RF))  # and ecx, ...
    code.shared("48890c25", _FLAGS)
    code.plain("488b442418")  # mov rax, [rsp + 24]
    code.shared("48890425", _RSP)
    code.plain("488b1424 4889d0 48c1e82f")  # mov rdx, [rsp]; mov rax, rdx; shr rax, 47
    code.jump(_JNE, "slow")
    code.shared("483b1425", RIP)  # cmp rdx, [...]
    code.jump(_JNE, "slow")
    code.shared("488b0425", COUNT)
    code.shared("483b0425", SEEN)  # cmp rax, [...]
    code.jump(_JE, "slow")
    code.shared("488b0425", abi.SELECTORS + 8 * r.ES)
    for index in (r.DS, r.FS, r.GS):
        code.shared("480b0425", abi.SELECTORS + 8 * index)  # or rax, [...]
    code.plain("4885c0")  # test rax, rax
    code.jump(_JNE, "slow")
    code.shared("833c25", LOGGED, bytes((MOST,)))  # cmp dword [...], ...
    code.jump(_JAE, "slow")
    code.shared("488b3425", ADDRESS)
    code.shared("488b0425", WAITING)
    code.plain("4885c0")  # test rax, rax
    code.jump(_JE, "mended")
    code.plain("48ffc8")  # dec rax
    code.jump(_JNE, "slow")
    # Of one page alone, which the entry is for that is made here: it is the last of those noted.
    code.shared("488b0425", LISTED)
    code.plain("488b04c5", half(abi.SHARED_PAGE + abi.INVALIDATE_LIST - 8))  # mov rax, [... + rax * 8]
    code.plain("4831f0 48c1e80c")  # xor rax, rsi; shr rax, 12
    code.jump(_JNE, "slow")
    code.here("mended")


def _walk(code: MachineCode, shown: Shown) -> None:
    """Both walks for RSI. R10 is the guest's entry of the page, RDI where its table is shown, RBX the shadow's, R8 the
    offset of that, R11 the offset of an entry in both; R9 and RDX what frames are in, and memory's size."""
    links(code, shown, ROOT, "slow")
    code.plain("49ba", whole(shown.memory))  # mov r10, ...
    code.plain("4c01d7")  # add rdi, r10
    code.plain("4e8b141f")  # mov r10, [rdi + r11]
    code.plain("49b9", whole(_FRAME_MASK))
    code.plain("4c01c3")  # add rbx, r8


def links(code: MachineCode, shown: Shown, root: int, absent: str) -> None:
    """Walk the guest's tables and the shadow for RSI as far as the last table, of which RDI is the physical address, R8
    the offset, and R11 that of an entry; where the shadow leads nowhere go to `absent`. Tables that do not belong
    together, and large pages, are unusual."""
    code.shared("488b3c25", abi.CONTROL_REGISTERS + 0x18)  # mov rdi, [cr3]
    code.shared("483b3c25", ROOT_OF)  # cmp rdi, [...]
    code.jump(_JNE, "slow")
    code.plain("4881e7", half(~0xFFF))  # and rdi, ...
    code.shared("4c8b0425", root)  # mov r8, [...]
    code.plain("48bb", whole(shown.tables))  # mov rbx, ...
    code.plain("ba", half(shown.size))  # mov edx, ...
    code.plain("b9", half(36))  # mov ecx, ...
    again, last = f"level below {root}", f"last level below {root}"
    code.here(again)
    code.plain("4981f8", half(shown.tables_size))  # cmp r8, ...
    code.jump(_JAE, "slow")
    code.plain("4839d7")  # cmp rdi, rdx
    code.jump(_JAE, "slow")
    code.plain("49ba", whole(shown.sources))  # mov r10, ...
    # mov eax, r8d; shr eax, 12; mov eax, [r10 + rax * 4]; mov r9, rdi; shr r9, 12; cmp eax, r9d
    code.plain("4489c0 c1e80c 418b0482 4989f9 49c1e90c 4439c8")
    code.jump(_JNE, "slow")
    # mov r11, rsi; shr r11, cl; and r11d, 0xff8; cmp ecx, 9
    code.plain("4989f3 49d3eb 4181e3f80f0000 83f909")
    code.jump(_JE, last)
    code.plain("4c89d8 4c01c0 4c8b0403")  # mov rax, r11; add rax, r8; mov r8, [rbx + rax]
    code.plain("41f6c001")  # test r8b, present
    code.jump(_JE, absent)
    code.plain("41f6c080")  # test r8b, large
    code.jump(_JNE, "slow")
    code.plain("49ba", whole(shown.memory))  # mov r10, ...
    # add rdi, r10; mov rdi, [rdi + r11]; mov r9d, edi; and r9d, 0x85; cmp r9d, 5
    code.plain("4c01d7 4a8b3c1f 4189f9 4181e185000000 4183f905")
    code.jump(_JNE, "slow")
    code.plain("49b9", whole(_FRAME_MASK))  # mov r9, ...
    code.plain("4c21cf 4d21c8")  # and rdi, r9; and r8, r9
    code.plain("49b9", whole(shown.tables_at))
    code.plain("4d29c8 83e909")  # sub r8, r9; sub ecx, 9
    code.jump(_JMP, again)
    code.here(last)


def _entry(code: MachineCode, shown: Shown) -> None:
    """Make RAX the shadow's entry of R10, if the access is allowed by it."""
    code.plain("4489d0 83e025 83f825")  # mov eax, r10d; and eax, ...; cmp eax, ...
    code.jump(_JNE, "slow")
    code.plain("4c89d0 4c21c8 4839d0")  # mov rax, r10; and rax, r9; cmp rax, rdx
    code.jump(_JAE, "slow")
    code.plain("4989c1 49c1e90c")  # mov r9, rax; shr r9, 12
    code.plain("48b9", whole(shown.kinds))
    code.plain("420fb60c09")  # movzx ecx, byte [rcx + r9]
    # mov r9d, r10d; and r9d, dirty | writable; xor r9d, ...; or r9d, ecx
    code.plain("4589d1 4183e142 4183f142 4109c9")
    code.jump(_JE, "plain")
    code.shared("f60425", ERROR, b"\x02")  # test byte [...], write
    code.jump(_JNE, "slow")
    code.plain("4883c8", bytes((_READ,)))  # or rax, ...
    code.jump(_JMP, "rights")
    code.here("plain")
    code.plain("4883c8", bytes((_WRITE,)))
    code.here("rights")
    code.plain("48b9", whole(_NO_EXECUTE))
    code.plain("4c21d1 4809c8")  # and rcx, r10; or rax, rcx
    code.shared("f60425", ERROR, b"\x10")  # test byte [...], fetch
    code.jump(_JE, "allowed")
    code.plain("4885c9")  # test rcx, rcx
    code.jump(_JNE, "slow")
    code.here("allowed")


def _around(code: MachineCode) -> None:
    """Whether many of the sixteen pages around would be mapped ahead by the hypervisor: `together` then."""
    code.plain("4889c2")  # mov rdx, rax
    code.plain(
        "4489d9 81e1800f0000 31c0 49c7c1", half(_AROUND)
    )  # mov ecx, r11d; and ecx, ...; xor eax, eax; mov r9, ...
    code.here("next")
    code.plain("48833c0b00")  # cmp qword [rbx + rcx], 0
    code.jump(_JNE, "other")
    code.plain("8b340f 83e625 83fe25")  # mov esi, [rdi + rcx]; and esi, ...; cmp esi, ...
    code.jump(_JNE, "other")
    code.plain("ffc0")  # inc eax
    code.here("other")
    code.plain("83c108 49ffc9")  # add ecx, 8; dec r9
    code.jump(_JNE, "next")
    code.plain("83f8", bytes((_NEIGHBOURS + 1,)))  # cmp eax, ...
    code.plain("4889d0")  # mov rax, rdx
    code.jump(_JA, "together")


def _together(code: MachineCode, shown: Shown) -> None:
    """Sixteen entries at once, where the guest's are those of a block that the hypervisor knows. RAX is the block's
    offset then, and R8 is at the entries."""
    code.here("together")
    code.shared("f60425", ERROR, b"\x02")  # test byte [...], write
    code.jump(_JNE, "slow")
    code.shared("488b0425", ADDRESS)
    # shr rax, 16; and eax, 255; shl eax, 7; and r11d, -128; add r8, r11; add rdi, r11
    code.plain("48c1e810 25ff000000 c1e007 4181e3800f0000 4d01d8 4c01df")
    code.plain("48be", whole(shown.blocks))  # mov rsi, ...
    code.plain("4801c6 b9", half(_AROUND), bytes.fromhex("f348a7"))  # add rsi, rax; mov ecx, 16; repe cmpsq
    code.jump(_JNE, "slow")
    code.plain("4d89c3 4983cb01 4989c2")  # mov r11, r8; or r11, 1; mov r10, rax


def _note(code: MachineCode) -> None:
    """Note R11, the entry's place, and R10, the guest's entry; or the place of several, and which block they are."""
    code.shared("8b0c25", LOGGED)  # mov ecx, [...]
    code.plain("c1e104 48c7c2", half(abi.SHARED_PAGE + abi.RETURN_LOG))  # shl ecx, 4; mov rdx, ...
    code.plain("4c891c0a 4c89540a08")  # mov [rdx + rcx], r11; mov [rdx + rcx + 8], r10
    code.shared("48ff0425", LOGGED)  # inc qword [...]
    code.shared("48ff0425", RETURNS)
    code.shared("488b1425", COUNT)
    code.shared("48891425", SEEN)
    code.shared("48c70425", WAITING, half(0))
    code.shared("488b1425", abi.RETURN_THREAD)
    code.shared("48891425", abi.CROSSING_THREAD)


def invalidating_code(shown: Shown) -> tuple[bytes, int]:
    """The code for INVLPG of an address of the lower half, and the offset in it of a HLT at which the engine is to
    clear the entry at the offset RCX of the tables, the kernel's own of the page. User code's goes when the page is
    mapped anew, or before user code is entered otherwise."""
    code = MachineCode()
    for store, _, word in _REGISTERS:
        code.shared(store, word)
    code.shared("48890425", _KEPT_RAX)
    code.shared("488b0c25", abi.SCRATCH + 8)
    code.shared("48890c25", _RCX)
    code.shared("48892425", _KEPT_RSP)
    code.shared("48c7c4", KEPT_FLAGS + 8)  # mov rsp, ...
    code.plain("9c")  # pushfq
    code.shared("488b0425", abi.RETURN_THREAD)
    code.plain("4885c0")  # test rax, rax
    code.jump(_JS, "slow")
    code.shared("488b3425", ADDRESS_OF)
    code.plain("4889f0 48c1e82f")  # mov rax, rsi; shr rax, 47
    code.jump(_JNE, "slow")
    code.shared("833c25", LISTED, bytes((MOST,)))
    code.jump(_JAE, "slow")
    links(code, shown, KERNEL_ROOT, "unmapped")
    code.plain("4c01c3 4a833c1b00")  # add rbx, r8; cmp qword [rbx + r11], 0
    code.jump(_JE, "unmapped")
    code.plain("4c89c1 4c01d9")  # mov rcx, r8; add rcx, r11
    code.here("clear")
    code.plain("f4")  # RSI alone is needed behind it
    code.here("unmapped")
    links(code, shown, ROOT, "never")
    code.shared("48ff0425", WAITING)
    code.plain("48b8", whole(abi.NO_THREAD))  # mov rax, ...
    code.shared("48890425", abi.CROSSING_THREAD)
    code.here("never")
    code.shared("488b0425", LISTED)
    code.plain("488934c5", half(abi.SHARED_PAGE + abi.INVALIDATE_LIST))  # mov [... + rax * 8], rsi
    code.shared("48ff0425", LISTED)
    code.shared("48ff0425", BEHIND)  # over the HLT
    code.here("slow")
    for _, load, word in _REGISTERS:
        code.shared(load, word)
    code.shared("488b0425", _KEPT_RAX)
    code.shared("48c7c4", KEPT_FLAGS)
    code.plain("9d")  # popfq
    code.shared("488b2425", _KEPT_RSP)
    code.shared("ff2425", BEHIND)  # jmp [...]
    return code.finish(), code.places["clear"]


def _go(code: MachineCode) -> None:
    """Registers and flags as user code has them, before the HLT."""
    code.plain("4c89c1 488b1424")  # mov rcx, r8; mov rdx, [rsp]
    for _, load, word in _REGISTERS[2:]:
        code.shared(load, word)
    code.shared("48c7c4", _FLAGS)  # mov rsp, ...
    code.plain("9d")  # popfq
    code.shared("488b2425", _RSP)  # mov rsp, [...]


__all__ = ["KEPT", "MOST", "SAVED", "Shown", "return_code"]
