/* Spins with interrupts off, for ever. */
#include "hostile.inc"

	BEGIN "spin"
	cli
1:	jmp 1b
