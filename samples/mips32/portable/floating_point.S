	/* void fpu_save(void *to), fpu_load(const void *from), fpu_reset(void) */
	.set hardfloat
	.macro for_floats operation
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	\operation $f\n, 4 * \n(a0)
	.endr
	.endm
	.globl fpu_save, fpu_load, fpu_reset
fpu_save:
	for_floats swc1
	cfc1 t0, $31
	jr ra
	sw t0, 128(a0)
fpu_load:
	for_floats lwc1
	lw t0, 128(a0)
	jr ra
	ctc1 t0, $31
fpu_reset:
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	mtc1 zero, $f\n
	.endr
	jr ra
	ctc1 zero, $31
	.set softfloat
