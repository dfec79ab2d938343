	/* Changes of stacks and registers: what a fault of the kernel's own goes back to, and tasks. */
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
