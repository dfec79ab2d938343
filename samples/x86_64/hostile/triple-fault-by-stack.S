/* An exception that no stack can take: page fault, double fault, triple fault. */
#include "hostile.inc"

	BEGIN "triple-fault-by-stack"
	movq $0x700000000000, %rsp
	ud2
	WRONG
