/* MIPS32, para-virtual: the kernel's entry, and code that is copied by the checks. */
#include "arch.h"
#include "layout.h"
#include "retrap_asm.h"

#include "registers.h"

	.section .head.text, "ax"
	.globl kernel_entry
	.type kernel_entry, @function
kernel_entry: /* a0 = argc, a1 = argv, a2 = environment, a3 = memory */
	la sp, boot_stack_top - 16
	move fp, zero
	move a0, a1
	la t0, kernel_main
	jalr t0
	nop
	break
	.size kernel_entry, . - kernel_entry

	.section .retrap.note, "a", @note
	.balign 4
	.long 7, 4, RETRAP_NOTE_VERSION
	.asciz "retrap"
	.balign 4
	.long RETRAP_VERSION

	.section .volatile, "aw", @nobits
	.balign 4096
	.skip 16384
	.globl boot_stack_top
boot_stack_top:

	.text
#include "contexts.S"

#include "floating_point.S"

	/* What is sensitive here, as functions that run wherever they are copied to. */
	.macro variant name, result
	.pushsection .rodata.variants, "a"
	.long \name, \name\()_end, \result
	.popsection
\name:
	.endm
	.macro end name
	jr ra
	nop
\name\()_end:
	.endm

	.section .rodata.variants, "a"
	.balign 4
	.globl pv_variants, pv_variants_end
pv_variants:
	.section .rodata
	.balign 4
	variant off, RETRAP_INTERRUPTS_OFF
	li t0, RETRAP_INTERRUPTS
	sw zero, 0(t0)
	lw v0, 0(t0)
	end off
	variant on, RETRAP_INTERRUPTS_ON
	li t0, RETRAP_INTERRUPTS
	li t1, RETRAP_INTERRUPTS_ON
	sw t1, 0(t0)
	lw v0, 0(t0)
	sw zero, 0(t0)
	end on
	variant version, RETRAP_VERSION
	move t2, ra
	li t0, RETRAP_CALL
	jalr t0
	li v0, RETRAP_CALL_VERSION
	move ra, t2
	end version
	variant plain, 0x2a
	li v0, 0x2a
	end plain
	variant unknown, -RETRAP_ERROR_UNKNOWN_CALL
	move t2, ra
	li t0, RETRAP_CALL
	jalr t0
	li v0, 4711
	move ra, t2
	end unknown
	variant mask, 0
	li t0, RETRAP_MASK
	lw v0, 0(t0)
	end mask
	.section .rodata.variants, "a"
pv_variants_end:

	.bss
	.balign 4096
	.globl kernel_root
kernel_root:
	.skip 4096
	.globl catch_stack
catch_stack:
	.skip 4

#include "user_image.S"
