/* Interrupt gates full of nonsense: every vector by INT, with handlers nowhere, of wrong type, in
 * wrong segments. The last one finds no way out: triple fault. */
#include "hostile.inc"

	BEGIN "interrupt-table-nonsense"
	leaq idt(%rip), %rdi
	movabsq $0x9e3779b97f4a7c15, %rbx
	addq $32*16, %rdi
	movl $448, %ecx
1:	imulq $0x5851f42d, %rbx, %rbx
	addq $0x1234567, %rbx
	movq %rbx, (%rdi)
	addq $8, %rdi
	loop 1b
	movl $32, %ebp
2:	ATTEMPT 3f
	movb %bpl, the_int+1(%rip)
	movq %cr2, %rax
	movq %rax, %cr2
	jmp the_int
the_int: int $32
3:	incl %ebp
	cmpl $256, %ebp
	jb 2b
	leaq idt(%rip), %rdi
	movl $64, %ecx
	movq $-1, %rax
	rep stosq
	ud2
	WRONG
