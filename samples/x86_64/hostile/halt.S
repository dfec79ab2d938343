/* Halts with interrupts off: nothing can wake it. */
#include "hostile.inc"

	BEGIN "halt"
	cli
	hlt
	WRONG
