/* An exception handler that faults at its own first instruction, for ever. */
#include "hostile.inc"

	BEGIN "fault-loop"
	leaq loop_here(%rip), %rax
	leaq idt(%rip), %rdi
	movw %ax, 6*16(%rdi)
	shrq $16, %rax
	movw %ax, 6*16+6(%rdi)
	movq $stack_top, %rsp
loop_here:
	movq $stack_top, %rsp
	ud2
