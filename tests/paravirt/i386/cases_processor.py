"""Small 32-bit guests: tasks, segments, paging, SYSENTER and what else a processor has.

Room: `tests`, as assembly text; `sources` puts them together.
"""

from tests.paravirt.i386.set_up import ALL, PAGED, TWO

PROCESSOR: dict[str, tuple[str, str, tuple[str, ...]]] = {
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
