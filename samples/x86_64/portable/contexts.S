	/* Changes of stacks and registers: what a fault of the kernel's own goes back to, and tasks. */
	/* bool catch_fault(void (*run)(word), word argument) */
	.globl catch_fault
	.type catch_fault, @function
catch_fault:
	for_registers pushq, rbx, rbp, r12, r13, r14, r15
	pushq catch_stack
	movq %rsp, catch_stack
	movq %rdi, %rax
	movq %rsi, %rdi
	call *%rax
	xorl %eax, %eax
catch_leave:
	popq catch_stack
	for_registers popq, r15, r14, r13, r12, rbp, rbx
	ret
	.size catch_fault, . - catch_fault

	.globl catch_resume
	.type catch_resume, @function
catch_resume:
	movq catch_stack, %rsp
	movl $1, %eax
	jmp catch_leave
	.size catch_resume, . - catch_resume

	/* void switch_stacks(word *save, word load) */
	.globl switch_stacks
	.type switch_stacks, @function
switch_stacks:
	for_registers pushq, rbx, rbp, r12, r13, r14, r15
	movq %rsp, (%rdi)
	movq %rsi, %rsp
	for_registers popq, r15, r14, r13, r12, rbp, rbx
	ret
	.size switch_stacks, . - switch_stacks
