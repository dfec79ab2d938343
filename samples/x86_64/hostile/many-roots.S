/* Loads 8192 different roots, each with tables of its own: more than a hypervisor should keep. */
#include "hostile.inc"

	BEGIN "many-roots"
	movl $8, %r12d /* rounds */
2:	movl $0x4000000, %ebp /* 1024 roots of three pages each, from 64 MiB on */
1:	movq pml4(%rip), %rax
	movq %rax, (%rbp)
	movq pml4+511*8(%rip), %rax
	movq %rax, 511*8(%rbp)
	leaq 0x1063(%rbp), %rax
	movq %rax, 200*8(%rbp)
	leaq 0x2063(%rbp), %rax
	movq %rax, 0x1000(%rbp)
	movq $0x6000000 + 0xe3, 0x2000(%rbp)
	movq %rbp, %cr3
	movabsq $200 << 39, %rbx
	movl %ebp, (%rbx)
	cmpl %ebp, 0x6000000
	jne leave_wrong
	movl 0x1ff000(%rbx), %eax
	addq $0x3000, %rbp
	cmpq $0x4000000 + 1024*0x3000, %rbp
	jb 1b
	decl %r12d
	jnz 2b
	DONE
