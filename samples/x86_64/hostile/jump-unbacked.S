/* Maps physical addresses that are no memory and runs there. Whatever a bus without a device gives
 * (all ones, or zeroes, which are ADD to where RAX points), an exception comes in the end. */
#include "hostile.inc"

	BEGIN "jump-unbacked"
	leaq unbacked(%rip), %rcx
1:	movq (%rcx), %rdx
	testq %rdx, %rdx
	jz leave_done
	leaq low_pd(%rip), %rbx
	movq %rdx, 100*8(%rbx)
	movq $0, 101*8(%rbx) /* what lies behind faults */
	movq %cr3, %rax
	movq %rax, %cr3
	ATTEMPT 2f
	leaq scratch(%rip), %rax
	movq $100*0x200000 + 0x1fff00, %rdx
	jmp *%rdx
2:	addq $8, %rcx
	jmp 1b
	.data
	.balign 8
unbacked:
	.quad 0xd0000000 + 0xe3, 0x300000000 + 0xe3, 0xffffe00000 + 0xe3, 0
