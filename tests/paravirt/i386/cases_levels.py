"""Small 32-bit guests: levels, gates and what user code is refused.

Room: `tests`, as assembly text; `sources` puts them together.
"""

from tests.paravirt.i386.set_up import ALL, TWO

LEVELS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "flags and selectors": (
        """
pushfl
popl %eax
cli
pushfl
popl %ebx
sti
nop
pushfl
popl %ecx
cli
movl %cs, %edx
movl %ss, %esi
smsw %di
sgdt DATA
sidt DATA+8
sldt DATA+16
str DATA+20
pushl %cs
popl %ebp
pushfw
popw DATA+24
pushw %ds
popw %es
""",
        "",
        ALL,
    ),
    "user and back by int": (
        """
movl $0x7777, %eax
TO_USER
""",
        """
movl $UDS, %eax
movl %eax, %ds
movl %eax, %es
movl $BASED, %eax
movl %eax, %fs
movl $0x1234, %fs:4
movl %fs:4, %ebx
pushfl
popl %ecx
movl %cs, %edx
int $0x80
""",
        ALL,
    ),
    "user is refused: cli": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
cli
int $0x80
""",
        TWO,
    ),
    "user is refused: hlt": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
hlt
int $0x80
""",
        TWO,
    ),
    "user is refused: cr0": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
movl %cr0, %eax
int $0x80
""",
        TWO,
    ),
    "user is refused: lgdt": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
lgdt 0x1ff0
int $0x80
""",
        TWO,
    ),
    "user is refused: in": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
inb $0x20, %al
int $0x80
""",
        TWO,
    ),
    "user is refused: kernel data segment": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
movl $KDS, %eax
movl %eax, %ds
int $0x80
""",
        TWO,
    ),
    "user is refused: int of the kernel": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
int $0x20
int $0x80
""",
        TWO,
    ),
    "user is refused: not present": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
movl $0x78, %eax
movl %eax, %es
int $0x80
""",
        TWO,
    ),
    "user is refused: beyond the table": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
movl $0x203, %eax
movl %eax, %es
int $0x80
""",
        TWO,
    ),
    "user is refused: lldt": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
lldt %ax
int $0x80
""",
        TWO,
    ),
    "user is refused: sysexit": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
sysexit
int $0x80
""",
        TWO,
    ),
    "user is refused: into": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
movl $0x7fffffff, %eax
incl %eax
into
int $0x80
""",
        TWO,
    ),
    "user is refused: bound": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
movl $9, %eax
movl %eax, DATA
movl $9, DATA+4
decl %eax
boundl %eax, DATA
int $0x80
""",
        TWO,
    ),
    "user is refused: int3": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
int3
int $0x80
""",
        TWO,
    ),
    "user is refused: ud2": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
ud2
int $0x80
""",
        TWO,
    ),
    "user is refused: divide": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
xorl %ecx, %ecx
divl %ecx
int $0x80
""",
        TWO,
    ),
    "user is refused: stack": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
movl $KDS, %eax
movl %eax, %ss
int $0x80
""",
        TWO,
    ),
    "call gate from user code": (
        """
movl $0x55, %eax
TO_USER
""",
        """
pushl $0x1111
pushl $0x2222
lcall $GATE, $0
int $0x80
""",
        ALL,
    ),
    "far calls and jumps": (
        """
ljmpl $KCS, $3f
3: movl $0x99, %eax
pushl %cs
pushl $4f
lret
4: lcall $KCS, $5f
jmp 6f
5: movl %esp, %ebx
lretl
6: movl $7f, DATA
movw $KCS, DATA+4
ljmpl *DATA
7: lesl DATA+8, %esi
ldsl DATA+8, %esi
lssl DATA+16, %esp
""",
        "",
        ALL,
    ),
    "verr verw lar lsl": (
        """
movl $UDS, %eax
verw %ax
pushfl
popl %ecx
movl $UCS, %eax
verr %ax
pushfl
popl %edx
larl %eax, %ebx
lsll %eax, %esi
movl $TR2, %eax
larl %eax, %edi
movl $3, %eax
movl $0x10, %ebp
arpl %ax, %bp
lsll %ebp, %ebp
""",
        "",
        ALL,
    ),
}
"""Name -> kernel, program, paging modes."""
