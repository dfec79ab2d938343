	/* The tables and the stack that the kernel begins with. */
	.section .data.page_tables, "aw"
	.balign 16384
	.globl kernel_table, image_tables, empty_table
#define SECTION_RW 0x1140e /* shareable, TEX 001 C B, kernel RW, domain 0 */
#define SECTION_XN 0x10
#define SECTION_DEVICE 0x00416 /* TEX 000 B, XN, kernel RW */
#define TABLE 1
kernel_table:
	.fill 0x401, 4, 0
	.long 0x40100000 | SECTION_RW /* the start, where it is loaded: dropped by arch_start */
	.long 0x40200000 | SECTION_RW
	.fill 0x7fd, 4, 0
	.set i, 0 /* 0xc0000000: 64 MiB */
	.rept 64
	.if i == 1 || i == 2
	.long image_tables - 0x80000000 + (i - 1) * 1024 + TABLE
	.else
	.long 0x40000000 + (i << 20) | SECTION_RW | SECTION_XN
	.endif
	.set i, i + 1
	.endr
	.fill 0x1c0, 4, 0
	.fill 16, 4, 0 /* 0xe00: devices, from 0xe0000000 */
	.fill 0x1f0, 4, 0
image_tables: /* rights by section are set in arch_start */
	.set i, 0x40100000
	.rept 512
	.long i + 0x45e /* small, TEX 001 C B, S, kernel RW */
	.set i, i + 0x1000
	.endr
	.balign 8192
empty_table:
	.fill 2048, 4, 0

	.section .volatile, "aw", %nobits
	.balign 4096
	.skip 16384
	.globl boot_stack_top
boot_stack_top:

	.text
