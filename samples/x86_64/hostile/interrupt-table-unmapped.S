/* An interrupt table where nothing is mapped: triple fault at the first exception. */
#include "hostile.inc"

	BEGIN "interrupt-table-unmapped"
	lidt nowhere(%rip)
	int3
	WRONG
	.data
nowhere: .word 4095
	.quad 0xffffa00000000000
