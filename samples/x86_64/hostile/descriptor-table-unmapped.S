/* A descriptor table where nothing is mapped: a segment load faults there, and so
 * does the delivery of that fault, which needs the table for CS: triple fault. */
#include "hostile.inc"

	BEGIN "descriptor-table-unmapped"
	lgdt nowhere(%rip)
	ATTEMPT 1f
	movl $KERNEL_DS, %eax
	movl %eax, %es
	WRONG
1:	WRONG
	.data
nowhere: .word 127
	.quad 0xffffa00000000000
