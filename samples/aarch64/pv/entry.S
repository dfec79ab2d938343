/* AArch64, para-virtual: the start without translation, the first tables, and code that is copied by the checks. */
#include "arch.h"
#include "layout.h"
#include "retrap_asm.h"

	.arch armv8-a
	.section .head.text, "ax"
	.globl _start
	.type _start, %function
_start: /* X0 = physical address of the device tree, by Linux's boot protocol */
#include "start.S"

	.section .bss.page_tables, "aw", %nobits
	.balign 4096
	.globl page_tables, page_tables_end, kernel_table, kernel_middle, empty_table, direct_tables
page_tables:
kernel_table:
	.skip 4096
kernel_upper:
	.skip 4096
kernel_middle: /* from 0xffff800000000000 on */
	.skip 4096
empty_table: /* the lower half without a process */
	.skip 4096
direct_tables:
	.skip DIRECT_PAGES * 8
page_tables_end:

	.section .volatile, "aw", %nobits
	.balign 4096
	.skip 16384
	.globl boot_stack_top
boot_stack_top:

	.text
#include "contexts.S"

	/* What is sensitive here, as functions that run wherever they are copied to. */
	.macro variant name, result
	.pushsection .rodata.variants, "a"
	.quad \name, \name\()_end, \result
	.popsection
\name:
	.endm
	.macro end name
	ret
\name\()_end:
	.endm
	.macro number register, value
	movz \register, #(\value) >> 48 & 0xffff, lsl #48
	movk \register, #(\value) >> 32 & 0xffff, lsl #32
	movk \register, #(\value) >> 16 & 0xffff, lsl #16
	movk \register, #(\value) & 0xffff
	.endm

	.section .rodata.variants, "a"
	.balign 8
	.globl pv_variants, pv_variants_end
pv_variants:
	.section .rodata
	.balign 8
	variant off, RETRAP_INTERRUPTS_OFF
	number x1, RETRAP_INTERRUPTS
	mov x0, #RETRAP_INTERRUPTS_OFF
	str x0, [x1]
	ldr x0, [x1]
	end off
	variant on, RETRAP_INTERRUPTS_ON
	number x1, RETRAP_INTERRUPTS
	mov x2, #RETRAP_INTERRUPTS_OFF
	str xzr, [x1]
	ldr x0, [x1]
	str x2, [x1]
	end on
	variant version, RETRAP_VERSION
	mov x2, x30
	number x1, RETRAP_CALL
	mov x8, #RETRAP_CALL_VERSION
	blr x1
	mov x30, x2
	end version
	variant plain, 0x2a
	mov x0, #0x2a
	end plain
	variant unknown, -RETRAP_ERROR_UNKNOWN_CALL
	mov x2, x30
	number x1, RETRAP_CALL
	mov x8, #4711
	blr x1
	mov x30, x2
	end unknown
	variant mask, 0
	number x1, RETRAP_MASK
	ldr x0, [x1]
	end mask
	.section .rodata.variants, "a"
pv_variants_end:

	.bss
	.balign 8
	.globl catch_stack
catch_stack:
	.skip 8

#include "user_image.S"
