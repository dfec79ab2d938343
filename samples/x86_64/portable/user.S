/* User programs on x86-64: the start, system calls, catching of faults, functions that fault. */
#include "layout.h"

	.section .text.start, "ax"
	.globl _start
_start: /* RDI = program, RSI = argument */
	call user_main
	movq %rax, %rdi
	movl $SYS_EXIT, %eax
	syscall
	ud2

	.text
	/* word call_kernel(word number, word a, word b, word c, word d, word e) */
	.globl call_kernel
call_kernel:
	movq %rdi, %rax
	movq %rsi, %rdi
	movq %rdx, %rsi
	movq %rcx, %rdx
	movq %r8, %r10
	movq %r9, %r8
	syscall
	ret

	/* word return_address(word number, word what, word *at) */
	.globl return_address
return_address:
	movq %rdi, %rax
	movq %rsi, %rdi
	leaq 1f(%rip), %rcx
	movq %rcx, (%rdx)
	syscall
1:	ret

	/* bool catch_fault(void (*run)(word), word argument, struct fault *fault) */
	.globl catch_fault
catch_fault:
	.irp register, rbx, rbp, r12, r13, r14, r15, rdx
	pushq %\register
	.endr
	movq %rdi, %rbx
	movq %rsi, %rbp
	leaq 1f(%rip), %rdi
	movq %rsp, %rsi
	movl $SYS_CATCH, %eax
	syscall
	movq %rbp, %rdi
	call *%rbx
	xorl %edi, %edi
	movl $SYS_CATCH, %eax
	syscall
	xorl %eax, %eax
	jmp 2f
1:	movq (%rsp), %rax
	movq %rdi, (%rax)
	movq %rsi, 8(%rax)
	movq %rdx, 16(%rax)
	movq %r8, 24(%rax)
	movl $1, %eax
2:	.irp register, rdx, r15, r14, r13, r12, rbp, rbx
	popq %\register
	.endr
	ret

	.macro faulting name, code:vararg
	.globl \name
\name:
	\code
	ret
	.endm
	faulting do_inb, inb $0x21, %al
	faulting do_outb, outb %al, $0x80
	faulting do_insb, insb
	faulting do_outsb, outsb
	faulting do_cli, cli
	faulting do_sti, sti
	faulting do_hlt, hlt
	faulting do_read_cr0, mov %cr0, %rax
	faulting do_write_cr3, mov %rax, %cr3
	faulting do_read_dr7, mov %dr7, %rax
	faulting do_rdmsr, rdmsr
	faulting do_wrmsr, wrmsr
	faulting do_lgdt, lgdt (%rdi)
	faulting do_lidt, lidt (%rdi)
	faulting do_lldt, lldt %ax
	faulting do_ltr, ltr %ax
	faulting do_lmsw, lmsw %ax
	faulting do_clts, clts
	faulting do_invlpg, invlpg (%rdi)
	faulting do_wbinvd, wbinvd
	faulting do_swapgs, swapgs
	faulting do_sysretq, sysretq
	faulting do_rdpmc, rdpmc
	faulting do_undefined, ud2
	faulting do_breakpoint, int3
	faulting do_read, movq (%rdi), %rax
	faulting do_write, movq %rax, (%rdi)
	faulting do_jump, jmp *%rdi

	.globl thread_word, sync_code, code_return, code_set_value
thread_word:
	movq %fs:0, %rax
	ret
sync_code: /* a serialising instruction */
	pushq %rbx
	xorl %eax, %eax
	cpuid
	popq %rbx
	ret
code_return: /* mov $value, %eax; ret */
	movb $0xb8, (%rdi)
	movl %esi, 1(%rdi)
	movb $0xc3, 5(%rdi)
	movl $6, %eax
	ret
code_set_value:
	movl %esi, 1(%rdi)
	movl $6, %eax
	ret

	/* word hold_registers(word pattern, word rounds, word yields): fills XMM0-15 and the x87 stack from
	 * the pattern and compares them in every round, with or without a system call in between. */
	.globl hold_registers
hold_registers:
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	movq %rdi, %rbx
	movq %rsi, %rbp
	movq %rdx, %r12
	xorl %r13d, %r13d
	subq $24, %rsp
	.macro for_xmm operation
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	\operation \n
	.endr
	.endm
	.macro fill_xmm n
	leaq \n(%rbx), %rax
	movq %rax, %xmm\n
	punpcklqdq %xmm\n, %xmm\n
	.endm
	.macro compare_xmm n
	movdqu %xmm\n, (%rsp)
	leaq \n(%rbx), %rax
	xorq (%rsp), %rax
	orq %rax, %rcx
	leaq \n(%rbx), %rax
	xorq 8(%rsp), %rax
	orq %rax, %rcx
	.endm
	for_xmm fill_xmm
	fninit
	movq %rbx, (%rsp)
	fildq (%rsp)
1:	testq %r12, %r12
	jz 2f
	movl $SYS_YIELD, %eax
	syscall
2:	movl $300, %eax /* time for the timer */
3:	decl %eax
	jnz 3b
	xorl %ecx, %ecx
	for_xmm compare_xmm
	fld %st(0)
	fistpq (%rsp)
	movq (%rsp), %rax
	subq %rbx, %rax
	orq %rax, %rcx
	cmpq $1, %rcx
	sbbq $-1, %r13 /* one more when RCX is not zero */
	decq %rbp
	jnz 1b
	movq %r13, %rax
	addq $24, %rsp
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret
