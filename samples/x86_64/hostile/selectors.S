/* Loads every selector into a data segment register, in the kernel and in user mode: beyond the guest's own
 * table each is #GP with the selector, whatever table the processor really uses. */
#define USER_IMAGE
#include "hostile.inc"

	BEGIN "selectors"
	movl $GDT_BYTES, %ebp
1:	ATTEMPT 2f
	movl %ebp, %es
	WRONG
2:	call judge
	ATTEMPT 3f
	movl %ebp, %r13d
	TO_USER load_in_user
3:	call judge
	ATTEMPT 4f
	TO_USER return_in_user
4:	call judge
	incl %ebp
	cmpl $0x1000, %ebp
	jb 1b
	DONE
judge:	cmpq $13, seen_vector(%rip)
	jne leave_wrong
	movl %ebp, %eax
	andl $~3, %eax
	cmpq %rax, seen_error(%rip)
	jne leave_wrong
	ret
load_in_user: movl %r13d, %es
	int3
return_in_user: movl %r13d, %eax
	orl $3, %eax
	pushq %rax
	leaq 1f(%rip), %rax
	pushq %rax
	lretq
1:	int3
