/* Jumps to every 16th byte of the first pages of the hypervisor's window and to the shared page. What
 * becomes of this guest is its own affair; the hypervisor must stand. */
#include "hostile.inc"

	BEGIN "hypervisor-pages-run"
	movq $SHARED_PAGE, %rbx
	ATTEMPT 1f
	jmp *%rbx
1:	movq $HYPERVISOR_BASE, %rbx
2:	ATTEMPT 3f
	leaq scratch(%rip), %rax
	jmp *%rbx
3:	addq $16, %rbx
	movq $HYPERVISOR_BASE + 0x8000, %rax
	cmpq %rax, %rbx
	jb 2b
	DONE
