/* A page-table root outside memory: nothing is mapped any more, triple fault. */
#include "hostile.inc"

	BEGIN "root-unbacked"
	movabsq $0x300000000, %rax
	movq %rax, %cr3
	nop
	WRONG
