/* An exception without an interrupt table: triple fault. */
#include "hostile.inc"

	BEGIN "triple-fault"
	lidt empty(%rip)
	int3
	WRONG
	.data
empty:	.word 0
	.quad 0
