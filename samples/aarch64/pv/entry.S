/* AArch64, para-virtual: the start without translation, the first tables, and code that is copied by the checks. */
#include "arch.h"
#include "layout.h"
#include "retrap_asm.h"

	.arch armv8-a
	.section .head.text, "ax"
	.globl _start
	.type _start, %function
_start: /* X0 = physical address of the device tree, by Linux's boot protocol */
	mov x20, x0
	/* 64 MiB of memory by pages: only the image's text is executable, and the tables are not mapped writable. */
	adrp x1, direct_tables
	adrp x2, __text_start
	adrp x3, __text_end
	adrp x4, page_tables
	adrp x5, page_tables_end
	mov x6, #PHYSICAL_BASE
	mov x7, #DIRECT_PAGES
	ldr x10, =PTE_PAGE + PTE_UXN + PTE_PXN
	ldr x11, =PTE_PAGE + PTE_UXN
1:	cmp x6, x2
	ccmp x6, x3, #2, hs
	csel x8, x10, x11, hs
	cmp x6, x4
	ccmp x6, x5, #2, hs
	b.hs 2f
	orr x8, x8, #PTE_READ_ONLY
2:	add x8, x8, x6
	str x8, [x1], #8
	add x6, x6, #0x1000
	subs x7, x7, #1
	b.ne 1b
	.macro point table, index, below
	adrp x1, \table
	adrp x2, \below
	add x2, x2, #PTE_TABLE
	str x2, [x1, #8 * (\index)]
	.endm
	point kernel_table, 256, kernel_upper /* of the upper half, 512 GiB */
	point kernel_upper, 0, kernel_middle
	adrp x1, kernel_middle
	adrp x2, direct_tables
	add x2, x2, #PTE_TABLE
	mov x3, #DIRECT_PAGES / 512
3:	str x2, [x1, #8 * 64] /* at KERNEL_BASE */
	add x1, x1, #8
	add x2, x2, #0x1000
	subs x3, x3, #1
	b.ne 3b
	ldr x9, =RETRAP_CALL
	mov x8, #RETRAP_CALL_NEW_BASE
	adrp x0, empty_table
	mov x1, #0
	blr x9
	adrp x0, kernel_table
	mov x1, #1
	ldr x30, =high /* where the call returns to: this address is not mapped any more */
	br x9
	.ltorg
high:
	ldr x0, =boot_stack_top
	mov sp, x0
	mov x29, #0
	mov x30, #0
	mov x0, x20
	bl kernel_main
	udf #0
	.ltorg
	.size _start, . - _start

	.section .retrap.note, "a", %note
	.balign 4
	.long 7, 4, RETRAP_NOTE_VERSION
	.asciz "retrap"
	.balign 4
	.long RETRAP_VERSION

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
	.macro save_callee
	stp x19, x20, [sp, #-96]!
	stp x21, x22, [sp, #16]
	stp x23, x24, [sp, #32]
	stp x25, x26, [sp, #48]
	stp x27, x28, [sp, #64]
	stp x29, x30, [sp, #80]
	.endm
	.macro load_callee
	ldp x21, x22, [sp, #16]
	ldp x23, x24, [sp, #32]
	ldp x25, x26, [sp, #48]
	ldp x27, x28, [sp, #64]
	ldp x29, x30, [sp, #80]
	ldp x19, x20, [sp], #96
	.endm

	/* bool catch_fault(void (*run)(word), word argument) */
	.globl catch_fault
	.type catch_fault, %function
catch_fault:
	save_callee
	ldr x2, =catch_stack
	ldr x3, [x2]
	stp x3, xzr, [sp, #-16]!
	mov x3, sp
	str x3, [x2]
	mov x3, x0
	mov x0, x1
	blr x3
	mov x0, #0
catch_leave:
	ldp x3, xzr, [sp], #16
	ldr x2, =catch_stack
	str x3, [x2]
	load_callee
	ret
	.size catch_fault, . - catch_fault

	.globl catch_resume
	.type catch_resume, %function
catch_resume:
	ldr x2, =catch_stack
	ldr x2, [x2]
	mov sp, x2
	mov x0, #1
	b catch_leave
	.size catch_resume, . - catch_resume

	/* void switch_stacks(word *save, word load) */
	.globl switch_stacks
	.type switch_stacks, %function
switch_stacks:
	save_callee
	mov x2, sp
	str x2, [x0]
	mov sp, x1
	load_callee
	ret
	.size switch_stacks, . - switch_stacks

	.arch armv8-a+fp+simd
	.globl fpu_save, fpu_load, fpu_reset
fpu_save:
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	str q\n, [x0, #16 * \n]
	.endr
	mrs x1, fpsr
	mrs x2, fpcr
	add x0, x0, #512
	stp w1, w2, [x0]
	ret
fpu_load:
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	ldr q\n, [x0, #16 * \n]
	.endr
	add x0, x0, #512
	ldp w1, w2, [x0]
	msr fpsr, x1
	msr fpcr, x2
	ret
fpu_reset:
	msr fpcr, xzr
	msr fpsr, xzr
	ret
	.arch armv8-a

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

	.section .rodata
	.balign 4096
	.globl user_image, user_image_end
user_image:
	.incbin USER_IMAGE
user_image_end:
	.balign 4096
