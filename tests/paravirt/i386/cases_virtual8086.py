"""Small 32-bit guests: virtual-8086 mode.

Room: `tests`, as assembly text; `sources` puts them together.
"""

from tests.paravirt.i386.set_up import PAGED, TWO

VIRTUAL_8086: dict[str, tuple[str, str, tuple[str, ...]]] = {
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
}
"""Name -> kernel, program, paging modes."""
