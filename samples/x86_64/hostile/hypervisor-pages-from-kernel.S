/* Reads every page of the hypervisor's window from the kernel and writes every page but the shared
 * one: reading may show what is there, writing must fault. */
#include "hostile.inc"

	BEGIN "hypervisor-pages-from-kernel"
	movq $HYPERVISOR_BASE, %rbx
	movl $HYPERVISOR_PAGES, %ebp
1:	ATTEMPT 2f
	movq (%rbx), %rax
	movq 4088(%rbx), %rax
2:	movq $SHARED_PAGE, %rax
	cmpq %rax, %rbx
	je 3f
	ATTEMPT 3f
	movq $0, 0x7f8(%rbx)
	WRONG
3:	addq $4096, %rbx
	decl %ebp
	jnz 1b
	DONE
