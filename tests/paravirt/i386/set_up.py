"""What the small 32-bit guests share: where things lie, how their kernel sets the processor up, the paging modes.

Room: `tests`, as assembly text for GNU as. The guests are in `cases_*.py`.
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
