	/* Changes of stacks and registers: what a fault of the kernel's own goes back to, and tasks. */
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
