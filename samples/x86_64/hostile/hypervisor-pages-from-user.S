/* Reads, writes and runs every page of the hypervisor's window from user mode: each a page fault of
 * an absent page. */
#define USER_IMAGE
#include "hostile.inc"

	BEGIN "hypervisor-pages-from-user"
	movq $HYPERVISOR_BASE, %rbx
	movl $HYPERVISOR_PAGES, %ebp
1:	ATTEMPT 2f
	TO_USER read_it
2:	call judge
	ATTEMPT 3f
	TO_USER write_it
3:	call judge
	ATTEMPT 4f
	TO_USER run_it
4:	call judge
	addq $4096, %rbx
	decl %ebp
	jnz 1b
	DONE
judge:	cmpq $14, seen_vector(%rip)
	jne leave_wrong
	cmpq %rbx, seen_cr2(%rip)
	jne leave_wrong
	testq $1, seen_error(%rip) /* nothing is there */
	jnz leave_wrong
	testq $4, seen_error(%rip) /* and user mode asked */
	jz leave_wrong
	ret
read_it: movq (%rbx), %rax
	int3
write_it: movq %rax, (%rbx)
	int3
run_it: jmp *%rbx
