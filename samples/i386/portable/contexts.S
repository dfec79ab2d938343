	/* Changes of stacks and registers: what a fault of the kernel's own goes back to, and tasks. */
	/* bool catch_fault(void (*run)(word), word argument) */
	.globl catch_fault
	.type catch_fault, @function
catch_fault:
	pushl %ebx
	pushl %ebp
	pushl %esi
	pushl %edi
	movl 20(%esp), %eax
	movl 24(%esp), %edx
	pushl catch_stack
	movl %esp, catch_stack
	pushl %edx
	call *%eax
	addl $4, %esp
	xorl %eax, %eax
catch_leave:
	popl catch_stack
	popl %edi
	popl %esi
	popl %ebp
	popl %ebx
	ret
	.size catch_fault, . - catch_fault

	.globl catch_resume
	.type catch_resume, @function
catch_resume:
	movl catch_stack, %esp
	movl $1, %eax
	jmp catch_leave
	.size catch_resume, . - catch_resume

	/* void switch_stacks(word *save, word load) */
	.globl switch_stacks
	.type switch_stacks, @function
switch_stacks:
	pushl %ebx
	pushl %ebp
	pushl %esi
	pushl %edi
	movl 20(%esp), %eax
	movl 24(%esp), %edx
	movl %esp, (%eax)
	movl %edx, %esp
	popl %edi
	popl %esi
	popl %ebp
	popl %ebx
	ret
	.size switch_stacks, . - switch_stacks
