/* Spins with interrupts off through operations that a hypervisor handles, for ever. */
#include "hostile.inc"

	BEGIN "spin-with-exits"
1:	sti
	cli
	movq %cr3, %rax
	movq %rax, %cr3
	jmp 1b
