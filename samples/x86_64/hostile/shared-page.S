/* Overwrites the page that a hypervisor shares with the guest's kernel (natively nothing is there:
 * page faults), again and again, between operations whose state lies in it. */
#include "hostile.inc"

	BEGIN "shared-page"
	movl $64, %ebp
	movabsq $0x9e3779b97f4a7c15, %rbx
1:	ATTEMPT 3f
	movq $SHARED_PAGE, %rdi
	movl $512, %ecx
2:	imulq $0x5851f42d, %rbx, %rbx
	incq %rbx
	movq %rbx, (%rdi)
	addq $8, %rdi
	cli
	pushfq
	popq %rax
	loop 2b
3:	ATTEMPT 4f
	cli
	pushfq
	sti
	popfq
	movq %cr0, %rax
	movq %cr3, %rax
	movq %cr4, %rax
	ud2
4:	ATTEMPT 5f
	movq $SHARED_PAGE, %rdi
	movq $-1, %rax
	movl $512, %ecx
	rep stosq
	sti
	cli
	int3
5:	decl %ebp
	jnz 1b
	cli
	DONE
