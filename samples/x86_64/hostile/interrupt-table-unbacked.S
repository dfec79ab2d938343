/* An interrupt table in physical addresses that are no memory: triple fault at the first exception. */
#include "hostile.inc"

	BEGIN "interrupt-table-unbacked"
	leaq low_pd(%rip), %rbx
	movabsq $0x300000000 + 0xe3, %rax
	movq %rax, 100*8(%rbx)
	movq %cr3, %rax
	movq %rax, %cr3
	lidt nowhere(%rip)
	int3
	WRONG
	.data
nowhere: .word 4095
	.quad 100*0x200000
