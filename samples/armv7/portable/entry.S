/* Entries and exits: the start with the MMU off, the first tables, the vectors and the way back. Exceptions save
 * their state on the Supervisor stack (SRS), and leave by RFE. */
#include "arch.h"
#include "layout.h"

	.syntax unified
	.arch_extension virt
	.arch_extension sec
	.section .head.text, "ax"
	.globl _start
	.type _start, %function
_start: /* R2 = physical address of the device tree, by Linux's boot protocol */
	cpsid if, #MODE_SVC
	mov r8, r2
	adr r0, _start
	ldr r1, =_start
	sub r9, r0, r1 /* physical - virtual */
	ldr r0, =kernel_table
	add r0, r0, r9
	mcr p15, 0, r0, c2, c0, 0 /* TTBR0 */
	mov r1, #0
	mcr p15, 0, r1, c2, c0, 2 /* TTBCR: TTBR0 alone */
	mov r1, #1
	mcr p15, 0, r1, c3, c0, 0 /* DACR: domain 0 is a client */
	mov r1, #0
	mcr p15, 0, r1, c8, c7, 0 /* TLBIALL */
	mcr p15, 0, r1, c7, c5, 0 /* ICIALLU */
	dsb
	isb
	mrc p15, 0, r1, c1, c0, 0
	ldr r2, =SCTLR_SET
	orr r1, r1, r2
	bic r1, r1, #0x2000 /* V: vectors by VBAR */
	bic r1, r1, #2 /* A */
	mcr p15, 0, r1, c1, c0, 0
	isb
	ldr pc, =high
	.ltorg
high:
	ldr sp, =boot_stack_top
	ldr r0, =vectors
	mcr p15, 0, r0, c12, c0, 0 /* VBAR */
	mov r0, r8
	bl kernel_main
0:	wfi
	b 0b
	.size _start, . - _start

#include "boot_tables.S"
	.balign 32
	.globl vectors
	.type vectors, %function
vectors:
	b .
	b undefined
	b supervisor_call
	b prefetch_abort
	b data_abort
	b .
	b interrupt
	b .
	.size vectors, . - vectors

	/* struct frame: kind, unused, SP and LR of user mode, R0-R12, LR of Supervisor mode, PC, CPSR. */
	.macro enter kind, adjust
	.if \adjust
	sub lr, lr, #\adjust
	.endif
	srsdb sp!, #MODE_SVC
	cps #MODE_SVC
	push {r0-r12, lr}
	mov r0, #\kind
	b trap_entry
	.endm
	.type undefined, %function
undefined:
	enter ENTRY_UNDEFINED, 4
	.type supervisor_call, %function
supervisor_call:
	enter ENTRY_SVC, 0
	.type prefetch_abort, %function
prefetch_abort:
	enter ENTRY_PREFETCH, 4
	.type data_abort, %function
data_abort:
	enter ENTRY_DATA, 8
	.type interrupt, %function
interrupt:
	enter ENTRY_IRQ, 4

	.type trap_entry, %function
trap_entry:
	sub sp, sp, #16
	add r1, sp, #8
	stm r1, {sp, lr}^
	str r0, [sp]
	mov r0, sp
	bl arch_trap
	.globl trap_return
	.type trap_return, %function
trap_return: /* SP = struct frame */
	clrex
	add r0, sp, #8
	ldm r0, {sp, lr}^
	nop
	add sp, sp, #16
	pop {r0-r12, lr}
	rfeia sp!
	.size trap_entry, . - trap_entry

	/* bool catch_fault(void (*run)(word), word argument) */
	.globl catch_fault
	.type catch_fault, %function
catch_fault:
	ldr r12, =return_broken
	ldrb r12, [r12]
	cmp r12, #0
	bne finish /* where modes do not change no exception is ever left */
#include "contexts.S"

	/* word load_as_user(word address), void store_as_user(word address): LDRT, STRT: as user code would */
	.globl load_as_user, store_as_user
load_as_user:
	ldrt r1, [r0], #0
	mov r0, r1
	bx lr
store_as_user:
	mov r1, #5
	strt r1, [r0], #0
	bx lr

	/* word return_by_rfe(void), word return_by_movs(void), word return_by_ldm(void): back in Supervisor mode */
	.globl return_by_rfe, return_by_movs, return_by_ldm
return_by_rfe:
	mrs r1, cpsr
	adr r0, 1f
	push {r0, r1}
	mov r0, #0
	rfeia sp!
	mov r0, #7
1:	bx lr
return_by_movs:
	mov r2, lr
	mrs r1, cpsr
	msr spsr_cxsf, r1
	adr lr, 1f
	mov r0, #0
	movs pc, lr
	mov r0, #7
1:	bx r2
return_by_ldm:
	mrs r1, cpsr
	msr spsr_cxsf, r1
	adr r1, 1f
	push {r1}
	mov r0, #0
	ldm sp!, {pc}^
	mov r0, #7
1:	bx lr
	.ltorg

	.bss
	.balign 8
	.globl catch_stack
catch_stack:
	.skip 8

#include "user_image.S"
