	/* From the first instruction into the upper half, on tables made here; the note says for which interface. */
	mov x20, x0
	/* 64 MiB of memory by pages: only the image's text is executable, and the tables are not mapped writable. */
	adrp x1, direct_tables
	adrp x2, __text_start
	adrp x3, __text_end
	adrp x4, page_tables
	adrp x5, page_tables_end
	mov x6, #PHYSICAL_BASE
	mov x7, #DIRECT_PAGES
	ldr x10, =PTE_PAGE + PTE_UXN + PTE_PXN
	ldr x11, =PTE_PAGE + PTE_UXN
1:	cmp x6, x2
	ccmp x6, x3, #2, hs
	csel x8, x10, x11, hs
	cmp x6, x4
	ccmp x6, x5, #2, hs
	b.hs 2f
	orr x8, x8, #PTE_READ_ONLY
2:	add x8, x8, x6
	str x8, [x1], #8
	add x6, x6, #0x1000
	subs x7, x7, #1
	b.ne 1b
	.macro point table, index, below
	adrp x1, \table
	adrp x2, \below
	add x2, x2, #PTE_TABLE
	str x2, [x1, #8 * (\index)]
	.endm
	point kernel_table, 256, kernel_upper /* of the upper half, 512 GiB */
	point kernel_upper, 0, kernel_middle
	adrp x1, kernel_middle
	adrp x2, direct_tables
	add x2, x2, #PTE_TABLE
	mov x3, #DIRECT_PAGES / 512
3:	str x2, [x1, #8 * 64] /* at KERNEL_BASE */
	add x1, x1, #8
	add x2, x2, #0x1000
	subs x3, x3, #1
	b.ne 3b
	ldr x9, =RETRAP_CALL
	mov x8, #RETRAP_CALL_NEW_BASE
	adrp x0, empty_table
	mov x1, #0
	blr x9
	adrp x0, kernel_table
	mov x1, #1
	ldr x30, =high /* where the call returns to: this address is not mapped any more */
	br x9
	.ltorg
high:
	ldr x0, =boot_stack_top
	mov sp, x0
	mov x29, #0
	mov x30, #0
	mov x0, x20
	bl kernel_main
	udf #0
	.ltorg
	.size _start, . - _start

	.section .retrap.note, "a", %note
	.balign 4
	.long 7, 4, RETRAP_NOTE_VERSION
	.asciz "retrap"
	.balign 4
	.long RETRAP_VERSION
