/* Entries and exits: the kernel's entry, the TLB refill handler, the general exception, the way back. */
#include "arch.h"
#include "layout.h"

#include "registers.h"

	.section .head.text, "ax"
	.globl kernel_entry
	.type kernel_entry, @function
kernel_entry: /* a0 = argc, a1 = argv, a2 = environment, a3 = memory */
	mtc0 zero, $12
	ehb
	la sp, boot_stack_top - 16
	move fp, zero
	move a0, a1
	la t0, kernel_main
	jalr t0
	nop
0:	b 0b
	nop
	.size kernel_entry, . - kernel_entry

	.section .volatile, "aw", @nobits
	.balign 4096
	.skip 16384
	.globl boot_stack_top
boot_stack_top:

	/* Copied to the vectors by arch_start. */
	.text
	.globl refill_vector, refill_vector_end, general_vector, general_vector_end
refill_vector:
	mfc0 k0, $8 /* BadVAddr */
	lui k1, %hi(user_root)
	bgez k0, 1f
	lw k1, %lo(user_root)(k1)
	la k1, kernel_root
1:	srl k0, k0, 22
	sll k0, k0, 2
	addu k1, k1, k0
	lw k1, 0(k1)
	mfc0 k0, $4 /* Context: the pair's number from bit 4 on */
	bnez k1, 2f
	srl k0, k0, 1
	la k1, empty_table
2:	andi k0, k0, 0xff8
	addu k1, k1, k0
	lw k0, 0(k1)
	lw k1, 4(k1)
	mtc0 k0, $2
	mtc0 k1, $3
	ehb
	tlbwr
	eret
refill_vector_end:

general_vector:
	la k0, exception_entry
	jr k0
	nop
general_vector_end:

	.macro for_registers operation
	.irp n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 28, 30, 31
	\operation $\n, 4 * \n(sp)
	.endr
	.endm

	.type exception_entry, @function
exception_entry:
	mfc0 k0, $12
	andi k0, k0, STATUS_UM
	beqz k0, 1f
	move k1, sp
	lui k1, %hi(kernel_stack)
	lw k1, %lo(kernel_stack)(k1)
1:	addiu k1, k1, -FRAME_BYTES
	sw sp, 4 * 29(k1)
	move sp, k1
	for_registers sw
	mfhi t0
	mflo t1
	sw t0, 4 * F_HI(sp)
	sw t1, 4 * F_LO(sp)
	mfc0 t0, $12
	mfc0 t1, $13
	sw t0, 4 * F_STATUS(sp)
	sw t1, 4 * F_CAUSE(sp)
	mfc0 t1, $14
	mfc0 t2, $8
	sw t1, 4 * F_EPC(sp)
	sw t2, 4 * F_BADVADDR(sp)
	li t1, ~(STATUS_UM | STATUS_EXL | STATUS_IE)
	and t0, t0, t1
	mtc0 t0, $12 /* kernel mode, interrupts off, and a miss is a refill again */
	ehb
	move a0, sp
	addiu sp, sp, -16
	jal arch_trap
	nop
	addiu sp, sp, 16
	.globl trap_return
trap_return: /* sp = struct frame */
	di
	ehb
	mfc0 t0, $12
	ori t1, t0, STATUS_EXL
	mtc0 t1, $12
	ehb
	lui t1, STATUS_CU1 >> 16 /* usable as it is now, whatever it was */
	and t0, t0, t1
	nor t1, t1, zero
	lw t2, 4 * F_STATUS(sp)
	and t2, t2, t1
	or t2, t2, t0
	ori t2, t2, STATUS_EXL
	mtc0 t2, $12
	lw t0, 4 * F_EPC(sp)
	mtc0 t0, $14
	lw t0, 4 * F_HI(sp)
	lw t1, 4 * F_LO(sp)
	mthi t0
	mtlo t1
	for_registers lw
	lw sp, 4 * 29(sp)
	ehb
	eret
	.size exception_entry, . - exception_entry

#include "contexts.S"

	/* void interrupts_wait(void): an interrupt between EI and WAIT goes on behind them (arch_trap). */
	.globl interrupts_wait, wait_begin, wait_end
	.type interrupts_wait, @function
interrupts_wait:
wait_begin:
	ei
	ehb
	wait
wait_end:
	di
	ehb
	jr ra
	nop
	.size interrupts_wait, . - interrupts_wait

#include "floating_point.S"

	.bss
	.balign 4096
	.globl kernel_root, empty_table
kernel_root:
	.skip 4096
empty_table:
	.skip 4096
	.globl catch_stack, user_root, kernel_stack
catch_stack:
	.skip 4
user_root:
	.skip 4
kernel_stack:
	.skip 4

#include "user_image.S"
