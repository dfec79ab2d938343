/* Page tables of every level full of nonsense: random entries, addresses outside memory, reserved
 * bits, large-page bits where none may be. Reads through all of them. */
#include "hostile.inc"

	BEGIN "tables-nonsense"
	movl $8, %ebp
	movabsq $0x2545f4914f6cdd1d, %rbx
round:	movl $0x4000000, %edi /* four tables at 64 MiB */
	movl $2048, %ecx
1:	movq %rbx, %rax
	shlq $13, %rax
	xorq %rax, %rbx
	movq %rbx, %rax
	shrq $7, %rax
	xorq %rax, %rbx
	movq %rbx, %rax
	shlq $17, %rax
	xorq %rax, %rbx
	movq %rbx, %rax
	testl $0x300, %ecx /* a quarter as they come; else memory between 64 and 128 MiB */
	jz 2f
	movabsq $0x8000000003fff1ff, %rdx
	andq %rdx, %rax
	orq $0x4000001, %rax
2:	movq %rax, (%rdi)
	addq $8, %rdi
	loop 1b
	leaq pml4(%rip), %rdi
	movq $0x4000000 + 0x67, %rax
	movl $4, %ecx
3:	movq %rax, 0x400(%rdi) /* four entries of the root, from 128 on, are the four tables */
	addq $0x1000, %rax
	addq $8, %rdi
	loop 3b
	movq %cr3, %rax
	movq %rax, %cr3
	xorl %r12d, %r12d
4:	movq %r12, %r13
	imulq $0x7ff1013, %r13, %r13
	shlq $12, %r13
	movabsq $0x1ffffffffff, %rax
	andq %rax, %r13
	movabsq $128 << 39, %rax
	addq %rax, %r13
	ATTEMPT 5f
	movq (%r13), %rax
5:	ATTEMPT 6f
	testb $7, %r12b
	jnz 6f
	invlpg (%r13)
6:	incl %r12d
	cmpl $4096, %r12d
	jb 4b
	decl %ebp
	jnz round
	DONE
