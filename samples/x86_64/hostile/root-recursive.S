/* A root whose every lower-half entry is the root itself: every walk ends in a table; read through it. */
#include "hostile.inc"

	BEGIN "root-recursive"
	leaq pml4(%rip), %rdi
	leaq scratch(%rip), %rsi
	movq $PHYS(pml4) + 0x63, %rax
	movl $256, %ecx
	rep stosq
	movq %cr3, %rax
	movq %rax, %cr3
	xorl %ebp, %ebp
1:	movq %rbp, %rbx
	movabsq $0x1002008010, %rax
	imulq %rax, %rbx
	movabsq $0x7ffffffffff8, %rax
	andq %rax, %rbx
	ATTEMPT 2f
	movq (%rbx), %rax
2:	incq %rbp
	cmpq $4096, %rbp
	jb 1b
	/* Change the tables through themselves: unmap and map one entry, over and over. */
	movl $1000, %ebp
3:	ATTEMPT 4f
	movq $0, 0x80 /* entry 16 of the root, through entries 0, 0, 0, 0 */
	movabsq $16 << 39, %rbx
	invlpg (%rbx)
	movq (%rbx), %rax
	WRONG
4:	movq $PHYS(pml4) + 0x63, %rax
	movq %rax, 0x80
	movq (%rbx), %rax
	decl %ebp
	jnz 3b
	DONE
