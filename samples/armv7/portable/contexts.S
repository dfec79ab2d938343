	/* catch_fault, from its first push on, and the other changes of stacks and registers. */
	push {r4-r12, lr}
	ldr r2, =catch_stack
	ldr r3, [r2]
	push {r3, r4}
	str sp, [r2]
	mov r3, r0
	mov r0, r1
	blx r3
	mov r0, #0
catch_leave:
	pop {r3, r4}
	ldr r2, =catch_stack
	str r3, [r2]
	pop {r4-r12, pc}
	.size catch_fault, . - catch_fault

	.globl catch_resume
	.type catch_resume, %function
catch_resume:
	ldr r2, =catch_stack
	ldr sp, [r2]
	mov r0, #1
	b catch_leave
	.size catch_resume, . - catch_resume

	/* void switch_stacks(word *save, word load) */
	.globl switch_stacks
	.type switch_stacks, %function
switch_stacks:
	push {r4-r11, r12, lr}
	str sp, [r0]
	mov sp, r1
	pop {r4-r11, r12, pc}
	.size switch_stacks, . - switch_stacks

	.globl fpu_save, fpu_load, fpu_reset
	.fpu neon-vfpv4
fpu_save:
	vstm r0!, {d0-d15}
	vstm r0!, {d16-d31}
	vmrs r1, fpscr
	str r1, [r0]
	bx lr
fpu_load:
	vldm r0!, {d0-d15}
	vldm r0!, {d16-d31}
	ldr r1, [r0]
	vmsr fpscr, r1
	bx lr
fpu_reset:
	mov r1, #0
	vmsr fpscr, r1
	bx lr
