/* MIPS32, para-virtual: the kernel's entry, and code that is copied by the checks. */
#include "arch.h"
#include "layout.h"
#include "retrap_asm.h"

#define zero $0
#define at $1
#define v0 $2
#define v1 $3
#define a0 $4
#define a1 $5
#define t0 $8
#define t1 $9
#define t2 $10
#define s0 $16
#define k0 $26
#define k1 $27
#define sp $29
#define fp $30
#define ra $31

	.set noreorder
	.set noat

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
	.macro saved operation
	.irp n, 16, 17, 18, 19, 20, 21, 22, 23
	\operation $\n, 4 * (\n - 16)(sp)
	.endr
	\operation fp, 32(sp)
	\operation ra, 36(sp)
	.endm

	/* bool catch_fault(void (*run)(word), word argument) */
	.globl catch_fault
	.type catch_fault, @function
catch_fault:
	addiu sp, sp, -64
	saved sw
	lui t0, %hi(catch_stack)
	lw t1, %lo(catch_stack)(t0)
	sw t1, 40(sp)
	sw sp, %lo(catch_stack)(t0)
	addiu sp, sp, -16
	move t0, a0
	jalr t0
	move a0, a1
	addiu sp, sp, 16
	move v0, zero
catch_leave:
	lw t1, 40(sp)
	lui t0, %hi(catch_stack)
	sw t1, %lo(catch_stack)(t0)
	saved lw
	jr ra
	addiu sp, sp, 64
	.size catch_fault, . - catch_fault

	.globl catch_resume
	.type catch_resume, @function
catch_resume:
	lui t0, %hi(catch_stack)
	lw sp, %lo(catch_stack)(t0)
	b catch_leave
	li v0, 1
	.size catch_resume, . - catch_resume

	/* void switch_stacks(word *save, word load) */
	.globl switch_stacks
	.type switch_stacks, @function
switch_stacks:
	addiu sp, sp, -40
	saved sw
	sw sp, 0(a0)
	move sp, a1
	saved lw
	jr ra
	addiu sp, sp, 40
	.size switch_stacks, . - switch_stacks

	/* void fpu_save(void *to), fpu_load(const void *from), fpu_reset(void) */
	.set hardfloat
	.macro for_floats operation
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	\operation $f\n, 4 * \n(a0)
	.endr
	.endm
	.globl fpu_save, fpu_load, fpu_reset
fpu_save:
	for_floats swc1
	cfc1 t0, $31
	jr ra
	sw t0, 128(a0)
fpu_load:
	for_floats lwc1
	lw t0, 128(a0)
	jr ra
	ctc1 t0, $31
fpu_reset:
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	mtc1 zero, $f\n
	.endr
	jr ra
	ctc1 zero, $31
	.set softfloat

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

	.section .rodata
	.balign 4096
	.globl user_image, user_image_end
user_image:
	.incbin USER_IMAGE
user_image_end:
	.balign 4096
