/* ARMv7-A, para-virtual: the start without translation, the first tables, and code that is copied by the checks. */
#include "arch.h"
#include "layout.h"
#include "retrap_asm.h"

	.syntax unified
	.section .head.text, "ax"
	.globl _start
	.type _start, %function
_start: /* R2 = physical address of the device tree, by Linux's boot protocol */
	mov r8, r2
	adr r0, _start
	ldr r1, =_start
	sub r9, r0, r1 /* physical - virtual */
	ldr r10, =kernel_table
	add r10, r10, r9
	ldr r9, =RETRAP_CALL
	mov r12, #RETRAP_CALL_NEW_BASE
	mov r0, r10
	mov r1, #0
	blx r9
	mov r0, r10
	mov r1, #1
	blx r9
	ldr pc, =high
	.ltorg
high:
	ldr sp, =boot_stack_top
	mov r0, r8
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

#include "boot_tables.S"
	/* bool catch_fault(void (*run)(word), word argument) */
	.globl catch_fault
	.type catch_fault, %function
catch_fault:
#include "contexts.S"

	/* What is sensitive here, as functions that run wherever they are copied to. */
	.macro variant name, result
	.pushsection .rodata.variants, "a"
	.long \name, \name\()_end, \result
	.popsection
\name:
	.endm
	.macro end name
	bx lr
\name\()_end:
	.endm
	.macro number register, value
	movw \register, #(\value) & 0xffff
	movt \register, #(\value) >> 16 & 0xffff
	.endm

	.section .rodata.variants, "a"
	.balign 4
	.globl pv_variants, pv_variants_end
pv_variants:
	.section .rodata
	.balign 4
	variant off, RETRAP_INTERRUPTS_OFF
	number r1, RETRAP_INTERRUPTS
	mov r0, #RETRAP_INTERRUPTS_OFF
	str r0, [r1]
	ldr r0, [r1]
	end off
	variant on, RETRAP_INTERRUPTS_ON
	number r1, RETRAP_INTERRUPTS
	mov r2, #RETRAP_INTERRUPTS_OFF
	mov r0, #RETRAP_INTERRUPTS_ON
	str r0, [r1]
	ldr r0, [r1]
	str r2, [r1]
	end on
	variant version, RETRAP_VERSION
	mov r2, lr
	number r1, RETRAP_CALL
	mov r12, #RETRAP_CALL_VERSION
	blx r1
	mov lr, r2
	end version
	variant plain, 0x2a
	mov r0, #0x2a
	end plain
	variant unknown, -RETRAP_ERROR_UNKNOWN_CALL
	mov r2, lr
	number r1, RETRAP_CALL
	movw r12, #4711
	blx r1
	mov lr, r2
	end unknown
	variant mask, 0
	number r1, RETRAP_MASK
	ldr r0, [r1]
	end mask
	.section .rodata.variants, "a"
pv_variants_end:
	.text
	.ltorg

	.bss
	.balign 8
	.globl catch_stack
catch_stack:
	.skip 8

#include "user_image.S"
