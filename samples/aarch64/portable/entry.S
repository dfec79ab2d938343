/* Entries and exits: the start with the MMU off, the first tables, the vectors and the way back. */
#include "arch.h"
#include "layout.h"

	.arch armv8-a
	.section .head.text, "ax"
	.globl _start
	.type _start, %function
_start: /* X0 = physical address of the device tree, by Linux's boot protocol */
	msr daifset, #15
	mov x20, x0
	adrp x0, identity_table
	msr ttbr0_el1, x0
	adrp x0, kernel_table
	msr ttbr1_el1, x0
	ldr x0, =TCR_VALUE
	msr tcr_el1, x0
	mov x0, #MAIR_VALUE
	msr mair_el1, x0
	tlbi vmalle1
	ic iallu
	dsb sy
	isb
	ldr x0, =SCTLR_VALUE
	msr sctlr_el1, x0
	isb
	ldr x0, =high
	br x0
	.ltorg
high:
	msr spsel, #1
	ldr x0, =boot_stack_top
	mov sp, x0
	ldr x0, =vectors
	msr vbar_el1, x0
	mov x29, #0
	mov x30, #0
	mov x0, x20
	bl kernel_main
0:	wfi
	b 0b
	.ltorg
	.size _start, . - _start

	.section .data.page_tables, "aw"
	.balign 4096
#define PHYS(symbol) ((symbol) - KERNEL_BASE + PHYSICAL_BASE)
	.globl kernel_table, kernel_middle, empty_table, image_tables
kernel_table: /* the upper half: one entry of 512 GiB */
	.fill 256, 8, 0
	.quad PHYS(kernel_upper) + PTE_TABLE
	.fill 255, 8, 0
kernel_upper:
	.quad PHYS(kernel_middle) + PTE_TABLE
	.fill 511, 8, 0
kernel_middle: /* from 0xffff800000000000 on */
	.fill 64, 8, 0
	.set i, 0
	.rept 32 /* 64 MiB of memory at KERNEL_BASE */
	.if i < 2
	.quad PHYS(image_tables) + i * 4096 + PTE_TABLE
	.else
	.quad PHYSICAL_BASE + (i << 21) + PTE_BLOCK + PTE_PXN + PTE_UXN
	.endif
	.set i, i + 1
	.endr
	.fill 32, 8, 0
	.quad 0x08000000 + PTE_BLOCK + PTE_DEVICE + PTE_PXN + PTE_UXN /* DEVICES */
	.quad 0x09000000 + PTE_BLOCK + PTE_DEVICE + PTE_PXN + PTE_UXN
	.fill 382, 8, 0
image_tables: /* rights by section are set in arch_start */
	.set i, PHYSICAL_BASE
	.rept 1024
	.quad i + PTE_PAGE + PTE_UXN
	.set i, i + 0x1000
	.endr
identity_table: /* the start, where it is loaded: dropped by arch_start */
	.quad PHYS(identity_upper) + PTE_TABLE
	.fill 511, 8, 0
identity_upper:
	.quad 0
	.quad PHYSICAL_BASE + PTE_BLOCK + PTE_UXN
	.fill 510, 8, 0
empty_table:
	.fill 512, 8, 0

	.section .volatile, "aw", %nobits
	.balign 4096
	.skip 16384
	.globl boot_stack_top
boot_stack_top:

	/* struct frame: X0-X30, SP_EL0, ELR_EL1, SPSR_EL1, kind, unused. */
	.text
	.macro enter kind
	.balign 128
	sub sp, sp, #FRAME_BYTES
	stp x0, x1, [sp]
	mov x0, #\kind
	b trap_entry
	.endm
	.macro never
	.balign 128
	b .
	.endm
	.balign 2048
	.globl vectors
	.type vectors, %function
vectors:
	.rept 4
	never
	.endr
	enter KIND_SYNCHRONOUS
	enter KIND_INTERRUPT
	never
	never
	enter KIND_SYNCHRONOUS
	enter KIND_INTERRUPT
	.rept 6
	never
	.endr
	.size vectors, . - vectors

	.type trap_entry, %function
trap_entry:
	stp x2, x3, [sp, #16]
	stp x4, x5, [sp, #32]
	stp x6, x7, [sp, #48]
	stp x8, x9, [sp, #64]
	stp x10, x11, [sp, #80]
	stp x12, x13, [sp, #96]
	stp x14, x15, [sp, #112]
	stp x16, x17, [sp, #128]
	stp x18, x19, [sp, #144]
	stp x20, x21, [sp, #160]
	stp x22, x23, [sp, #176]
	stp x24, x25, [sp, #192]
	stp x26, x27, [sp, #208]
	stp x28, x29, [sp, #224]
	mrs x1, sp_el0
	stp x30, x1, [sp, #240]
	mrs x1, elr_el1
	mrs x2, spsr_el1
	stp x1, x2, [sp, #256]
	stp x0, xzr, [sp, #272]
	mov x0, sp
	bl arch_trap
	.globl trap_return
	.type trap_return, %function
trap_return: /* SP = struct frame */
	ldp x1, x2, [sp, #256]
	msr elr_el1, x1
	msr spsr_el1, x2
	ldp x30, x1, [sp, #240]
	msr sp_el0, x1
	ldp x2, x3, [sp, #16]
	ldp x4, x5, [sp, #32]
	ldp x6, x7, [sp, #48]
	ldp x8, x9, [sp, #64]
	ldp x10, x11, [sp, #80]
	ldp x12, x13, [sp, #96]
	ldp x14, x15, [sp, #112]
	ldp x16, x17, [sp, #128]
	ldp x18, x19, [sp, #144]
	ldp x20, x21, [sp, #160]
	ldp x22, x23, [sp, #176]
	ldp x24, x25, [sp, #192]
	ldp x26, x27, [sp, #208]
	ldp x28, x29, [sp, #224]
	ldp x0, x1, [sp]
	add sp, sp, #FRAME_BYTES
	eret
	.size trap_entry, . - trap_entry

#include "contexts.S"

	/* word load_as_user(word address), void store_as_user(word address): LDTR, STTR: as user code would */
	.globl load_as_user, store_as_user
load_as_user:
	ldtr x0, [x0]
	ret
store_as_user:
	mov x1, #5
	sttr x1, [x0]
	ret

	/* word return_by_eret(void): back at EL1; 0 when it worked */
	.globl return_by_eret
return_by_eret:
	adr x0, 1f
	msr elr_el1, x0
	mrs x1, daif
	add x1, x1, #MODE_EL1
	msr spsr_el1, x1
	mov x0, #0
	eret
	mov x0, #7
1:	ret
	.ltorg

	.bss
	.balign 8
	.globl catch_stack
catch_stack:
	.skip 8

#include "user_image.S"
