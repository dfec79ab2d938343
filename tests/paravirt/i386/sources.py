"""Small 32-bit guests as assembly text: what they do, their kernel's code behind the set-up, their program.

Room: `tests`. `machine_code.json` beside it is what GNU as makes of them (`test_sources.py` holds the two together);
`guest.py` says what lies where. Each case is run in the paging modes that it names.
"""

NONE, TWO_LEVELS, PAE = "no paging", "two levels", "PAE"
ALL = (NONE, TWO_LEVELS, PAE)
PAGED = (TWO_LEVELS, PAE)
TWO = (TWO_LEVELS,)

SYMBOLS = """
.set GDT, 0x1000
.set IDT, 0x2000
.set TSS, 0x3000
.set TSS2, 0x3100
.set LEGACY, 0x4000
.set PDPT, 0x5000
.set PD, 0x6000
.set KSTACK, 0x9000
.set USTACK, 0xa000
.set DATA, 0xb000
.set STUBS, 0xc000
.set CODE, 0x10000
.set USER, 0x18000
.set KCS, 0x08
.set KDS, 0x10
.set UCS, 0x1b
.set UDS, 0x23
.set TR, 0x28
.set TR2, 0x30
.set BASED, 0x3b
.set SMALL, 0x40
.set GATE, 0x4b
.set LDTS, 0x50
.set BASECODE, 0x60
.macro TO_USER
pushl $UDS
pushl $USTACK
pushl $0x202
pushl $UCS
pushl $USER
iretl
.endm
"""

SETUP = """
lgdtl 0x1ff0
lidtl 0x1ff8
ljmpl $KCS, $1f
1: movl $KDS, %eax
movl %eax, %ds
movl %eax, %es
movl %eax, %ss
movl $KSTACK, %esp
xorl %eax, %eax
movl %eax, %fs
movl %eax, %gs
movl $TR, %eax
ltr %ax
movl $LDTS, %eax
lldt %ax
"""

PAGING = {
    NONE: "jmp 2f\n2:",
    TWO_LEVELS: """
movl $LEGACY, %eax
movl %eax, %cr3
movl %cr4, %eax
orl $0x10, %eax
movl %eax, %cr4
movl %cr0, %eax
orl $0x80010000, %eax
movl %eax, %cr0
jmp 2f
2:
""",
    PAE: """
movl $PDPT, %eax
movl %eax, %cr3
movl %cr4, %eax
orl $0x30, %eax
movl %eax, %cr4
movl %cr0, %eax
orl $0x80010000, %eax
movl %eax, %cr0
jmp 2f
2:
""",
}

HALT = """
cli
hlt
"""

CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
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
    "virtual-8086 and back": (
        """
pushl $0
pushl $0
pushl $0x1234
pushl $0x900
pushl $0x700
pushl $0x100
pushl $0x20202
pushl $0x1800
pushl $0
iretl
""",
        """
.code16
movw %cs, %ax
movw %ds, %bx
movw $0x5678, %ds:(0x20)
movw %ss, %cx
pushw %cx
popw %dx
movw %gs, %si
movw %ax, %es
movw %es:0, %bp
.byte 0xcd, 0x80
.code32
""",
        PAGED,
    ),
    "virtual-8086 at IOPL 0: cli": (
        """
pushl $0
pushl $0
pushl $0
pushl $0x900
pushl $0x700
pushl $0x100
pushl $0x20202
pushl $0x1800
pushl $0
iretl
""",
        """
.code16
cli
.byte 0xcd, 0x80
.code32
""",
        TWO,
    ),
    "virtual-8086 at IOPL 3: cli": (
        """
pushl $0
pushl $0
pushl $0
pushl $0x900
pushl $0x700
pushl $0x100
pushl $0x23202
pushl $0x1800
pushl $0
iretl
""",
        """
.code16
cli
.byte 0xcd, 0x80
.code32
""",
        TWO,
    ),
    "virtual-8086 at IOPL 0: pushf": (
        """
pushl $0
pushl $0
pushl $0
pushl $0x900
pushl $0x700
pushl $0x100
pushl $0x20202
pushl $0x1800
pushl $0
iretl
""",
        """
.code16
pushfw
.byte 0xcd, 0x80
.code32
""",
        TWO,
    ),
    "virtual-8086 at IOPL 0: int": (
        """
pushl $0
pushl $0
pushl $0
pushl $0x900
pushl $0x700
pushl $0x100
pushl $0x20202
pushl $0x1800
pushl $0
iretl
""",
        """
.code16
.byte 0xcd, 0x21
.byte 0xcd, 0x80
.code32
""",
        TWO,
    ),
    "virtual-8086 at IOPL 3: int": (
        """
pushl $0
pushl $0
pushl $0
pushl $0x900
pushl $0x700
pushl $0x100
pushl $0x23202
pushl $0x1800
pushl $0
iretl
""",
        """
.code16
.byte 0xcd, 0x21
.byte 0xcd, 0x80
.code32
""",
        TWO,
    ),
    "virtual-8086 at IOPL 0: in": (
        """
pushl $0
pushl $0
pushl $0
pushl $0x900
pushl $0x700
pushl $0x100
pushl $0x20202
pushl $0x1800
pushl $0
iretl
""",
        """
.code16
inb $0x20, %al
.byte 0xcd, 0x80
.code32
""",
        TWO,
    ),
    "virtual-8086 at IOPL 3: in": (
        """
pushl $0
pushl $0
pushl $0
pushl $0x900
pushl $0x700
pushl $0x100
pushl $0x23202
pushl $0x1800
pushl $0
iretl
""",
        """
.code16
inb $0x20, %al
.byte 0xcd, 0x80
.code32
""",
        TWO,
    ),
    "virtual-8086 at IOPL 0: hlt": (
        """
pushl $0
pushl $0
pushl $0
pushl $0x900
pushl $0x700
pushl $0x100
pushl $0x20202
pushl $0x1800
pushl $0
iretl
""",
        """
.code16
hlt
.byte 0xcd, 0x80
.code32
""",
        TWO,
    ),
    "virtual-8086 at IOPL 3: hlt": (
        """
pushl $0
pushl $0
pushl $0
pushl $0x900
pushl $0x700
pushl $0x100
pushl $0x23202
pushl $0x1800
pushl $0
iretl
""",
        """
.code16
hlt
.byte 0xcd, 0x80
.code32
""",
        TWO,
    ),
    "virtual-8086 at IOPL 0: iret": (
        """
pushl $0
pushl $0
pushl $0
pushl $0x900
pushl $0x700
pushl $0x100
pushl $0x20202
pushl $0x1800
pushl $0
iretl
""",
        """
.code16
.byte 0xcf
.byte 0xcd, 0x80
.code32
""",
        TWO,
    ),
    "virtual-8086 at IOPL 0: sti": (
        """
pushl $0
pushl $0
pushl $0
pushl $0x900
pushl $0x700
pushl $0x100
pushl $0x20202
pushl $0x1800
pushl $0
iretl
""",
        """
.code16
sti
.byte 0xcd, 0x80
.code32
""",
        TWO,
    ),
    "task gate": (
        """
movl $0x1, %eax
int $0x30
movl $2, %ebx
""",
        "",
        TWO,
    ),
    "task jump": (
        """
movl $0x1, %eax
ljmpl $TR2, $0
""",
        "",
        TWO,
    ),
    "16-bit stack": (
        """
movl $0xb000, %ecx
movl $SMALL, %eax
movl %eax, %ss
movl $0x12340100, %esp
pushl $0x77
pushfl
popl %ebx
popl %edx
movl %esp, %esi
pushw %cs
popw %di
lssl DATA+16, %esp
""",
        "",
        TWO,
    ),
    "code in a segment with a base": (
        """
ljmpl $BASECODE, $3f-0x10000
3: pushfl
popl %eax
cli
pushfl
popl %ebx
movl %cs, %ecx
lcall $KCS, $4f
jmp 5f
4: movl %esp, %esi
lretl
5: ljmpl $KCS, $6f
6:
""",
        "",
        TWO,
    ),
    "faults of the kernel": (
        "ud2",
        "",
        ALL,
    ),
    "a page that is absent": (
        "movl 0x700000, %eax",
        "",
        PAGED,
    ),
    "a page that is read-only": (
        "movl $1, 0x600000",
        "",
        PAGED,
    ),
    "a kernel's page from user code": (
        "TO_USER",
        """
movl $UDS, %eax
movl %eax, %ds
movl 0x400000, %eax
""",
        PAGED,
    ),
    "write protection off": (
        """
movl %cr0, %eax
andl $~0x10000, %eax
movl %eax, %cr0
movl $1, 0x600000
movl 0x600000, %ebx
orl $0x10000, %eax
movl %eax, %cr0
movl $2, 0x600000
""",
        "",
        PAGED,
    ),
    "sysenter and sysexit": (
        """
movl $0x174, %ecx
movl $KCS, %eax
xorl %edx, %edx
wrmsr
incl %ecx
movl $KSTACK-64, %eax
wrmsr
incl %ecx
movl $3f, %eax
wrmsr
TO_USER
3: pushfl
popl %edi
incl %ebx
cmpl $2, %ebx
je 4f
movl $USER+32, %edx
movl $USTACK-16, %ecx
sti
sysexit
4:
""",
        """
movl $1, %ebx
sysenter
.org 32
movl %esp, %esi
movl %cs, %ebp
movl %ss, %eax
sysenter
""",
        ALL,
    ),
    "the formats change under way": (
        """
movl $0x33, DATA
movl %cr0, %eax
andl $0x7fffffff, %eax
movl %eax, %cr0
movl DATA, %ebx
movl $PDPT, %ecx
movl %ecx, %cr3
movl %cr4, %ecx
orl $0x20, %ecx
movl %ecx, %cr4
orl $0x80000000, %eax
movl %eax, %cr0
movl DATA, %edx
movl 0x800000, %esi
movl $0x44, 0x800000
movl %cr3, %edi
andl $0x7fffffff, %eax
movl %eax, %cr0
movl $LEGACY, %ecx
movl %ecx, %cr3
movl %cr4, %ecx
andl $~0x20, %ecx
movl %ecx, %cr4
orl $0x80000000, %eax
movl %eax, %cr0
movl 0x800000, %ebp
""",
        "",
        TWO,
    ),
    "mapping changes": (
        """
movl 0x800000, %eax
movl $0x41, 0x900000
movl LEGACY+8, %ecx
movl $0x4000e7, LEGACY+8
invlpg 0x800000
movl 0x800000, %ebx
movl %ecx, LEGACY+8
movl %cr3, %edx
movl %edx, %cr3
movl 0x800000, %esi
""",
        "",
        TWO,
    ),
    "popf and iret in the kernel": (
        """
pushl $0x3ed7
popfl
pushfl
popl %eax
pushl $0x202
popfl
nop
pushfl
popl %ebx
pushl $0x3002
pushl %cs
pushl $3f
iretl
3: pushfl
popl %ecx
pushw $0x0246
popfw
nop
pushfl
popl %edx
lahf
movl %eax, %esi
""",
        "",
        ALL,
    ),
    "debug registers and time": (
        """
movl $0x1234, %eax
movl %eax, %dr0
movl %dr0, %ebx
movl %dr6, %ecx
movl %dr7, %edx
xorl %ecx, %ecx
movl $0, %ebp
movl %cr2, %esi
clts
movl %cr0, %edi
lmsw %di
wbinvd
invd
""",
        "",
        ALL,
    ),
    "ldt": (
        """
movl $0x7, %eax
movl %eax, %fs
movl %fs:0, %ebx
movl $0, %eax
lldt %ax
sldt %ecx
movl $7, %eax
movl %eax, %gs
""",
        "",
        TWO,
    ),
    "push and pop of segments": (
        """
pushl %ds
pushl %es
pushl %ss
pushl %fs
popl %eax
popl %ss
popl %es
popl %ds
pushw %gs
popw %fs
movl %ss, %ebx
movw %es, DATA
movw DATA, %gs
""",
        "",
        ALL,
    ),
    "an interrupt that waited comes once behind a stub's STI": (
        """
movl $4f, %eax
movw %ax, IDT+0x100
shrl $16, %eax
movw %ax, IDT+0x106
movb $0x11, %al
outb %al, $0x20
movb $0x20, %al
outb %al, $0x21
movb $4, %al
outb %al, $0x21
movb $1, %al
outb %al, $0x21
movb $0xfe, %al
outb %al, $0x21
movb $0x30, %al
outb %al, $0x43
movb $16, %al
outb %al, $0x40
xorb %al, %al
outb %al, $0x40
movl $5000, %ecx
5: decl %ecx
jnz 5b
call 3f
movl %esp, %esi
movl $50, %ecx
5: decl %ecx
jnz 5b
cli
pushal
popal
jmp 6f
.p2align 4
3: sti
nop
ret
.p2align 4
4: pushl %eax
movb $0x20, %al
outb %al, $0x20
incl DATA
popl %eax
iretl
6:
""",
        "",
        ALL,
    ),
}
"""Name -> kernel, program, paging modes."""
