/* A task-state segment where nothing is mapped: an exception in user mode finds no stack. */
#define USER_IMAGE
#include "hostile.inc"

	BEGIN "task-state-unmapped"
	leaq tss_descriptor(%rip), %rdi
	movl $0xffffa000, 8(%rdi)
	movb $0x89, 5(%rdi)
	movl $TSS, %eax
	ltr %ax
	TO_USER 1f
1:	ud2
	WRONG
