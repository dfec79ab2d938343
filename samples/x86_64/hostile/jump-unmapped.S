/* Jumps to virtual addresses that nothing maps: a page fault each; then once without an
 * interrupt table. */
#include "hostile.inc"

	BEGIN "jump-unmapped"
	ATTEMPT 1f
	movq $0x123456789000, %rbx
	jmp *%rbx
1:	cmpq $14, seen_vector(%rip)
	jne leave_wrong
	cmpq %rbx, seen_cr2(%rip)
	jne leave_wrong
	ATTEMPT 2f
	movabsq $0x8000000000000000, %rbx /* not canonical */
	jmp *%rbx
2:	cmpq $13, seen_vector(%rip)
	jne leave_wrong
	lidt empty(%rip)
	movq $0xffff900000000000, %rbx
	jmp *%rbx
	.data
empty:	.word 0
	.quad 0
