/* User programs: the start, catching of faults, functions that fault, 32-bit code. */
#include "../system_calls.h"

	.section .text.start, "ax"
	.globl _start
_start: /* RDI = program, RSI = argument */
	call user_main
	movq %rax, %rdi
	movl $SYS_EXIT, %eax
	syscall
	ud2

	.text
	/* bool catch_fault(void (*run)(u64), u64 argument, struct fault *fault) */
	.globl catch_fault
catch_fault:
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	pushq %rdx
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
	movq %r9, 32(%rax)
	movl $1, %eax
2:	popq %rdx
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret

	/* Functions whose first instruction faults (or whose label NAME_at does). RDI = argument. */
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
	faulting do_xgetbv, xgetbv
	faulting do_int_33, int $33
	faulting do_int_14, int $14
	faulting do_int_13, int $13
	faulting do_int_8, int $8
	faulting do_int_255, int $255
	faulting do_int_3, int3
	faulting do_int_4, int $4
	faulting do_ud2, ud2
	faulting do_read, movq (%rdi), %rax
	faulting do_write, movq %rax, (%rdi)
	faulting do_jump, jmp *%rdi
	faulting do_load_ss, mov %edi, %ss
	faulting do_load_ds, mov %edi, %ds
	faulting do_rdtsc, rdtsc
	.globl do_divide, do_divide_at, do_lretq, do_lretq_at, do_iretq, do_iretq_at, do_step, do_step_at
do_divide:
	xorl %eax, %eax
	xorl %edx, %edx
	xorl %ecx, %ecx
do_divide_at:
	divl %ecx
	ret
do_lretq: /* to the selector in RDI */
	pushq %rdi
	pushq $0
do_lretq_at:
	lretq
do_iretq: /* to CS = RDI */
	movq %rsp, %rax
	pushq $0x2b
	pushq %rax
	pushq $0x202
	pushq %rdi
	pushq $0
do_iretq_at:
	iretq
do_step:
	pushq $0x302
	popfq
	nop
do_step_at:
	nop
	ret
	.globl do_x87_divide, do_x87_divide_at
do_x87_divide: /* 1/0 unmasked: the error is pending and comes with the next waiting instruction */
	fninit
	pushq $0x37b
	fldcw (%rsp)
	popq %rax
	fld1
	fldz
	fdivrp
do_x87_divide_at:
	fwait
	ret

	/* u64 far_jump(void): CS after a far jump to the same code segment */
	.globl far_jump
far_jump:
	pushq $1f
	movl $0x33, 4(%rsp)
	ljmpl *(%rsp)
1:	addq $8, %rsp
	movl %cs, %eax
	ret

	/* u64 iret_in_user(u64 flags): IRETQ within user mode; the flags behind it */
	.globl iret_in_user
iret_in_user:
	movq %rsp, %rax
	pushq $0x2b
	pushq %rax
	pushq %rdi
	pushq $0x33
	pushq $1f
	iretq
1:	pushfq
	popq %rax
	ret

	/* u64 compatibility_code(u64 x, u64 *cs): far return into 32-bit code, arithmetic, INT 0x80,
	 * far jump back. The 32-bit stack is the same one: user memory lies below 4 GiB. */
	.globl compatibility_code
compatibility_code:
	pushq %rbx
	pushq %rsi
	movl %edi, %eax
	pushq $0x23
	pushq $in_32_bits
	lretq
	.code32
in_32_bits:
	movl %cs, %ebx
	pushl %ebx /* four bytes here */
	imull $7, %eax, %eax
	decl %eax /* 0x48 is REX.W in 64-bit mode */
	movl %eax, %edi
	movl $1000, %esi
	movl $SYS_ECHO, %eax
	int $0x80
	popl %ebx
	ljmp $0x33, $back_in_64_bits
	.code64
back_in_64_bits:
	popq %rsi
	movq %rbx, (%rsi)
	popq %rbx
	ret

	/* u64 caller_cs_in_32_bits(void): what the kernel's frame has for a 32-bit caller */
	.globl caller_cs_in_32_bits
caller_cs_in_32_bits:
	pushq $0x23
	pushq $2f
	lretq
	.code32
2:	movl $SYS_CALLER_CS, %eax
	int $0x80
	ljmp $0x33, $3f
	.code64
3:	ret

	/* Faults and preemption in 32-bit code. RDI = turns: counts down by DEC (one byte in 32-bit
	 * code) and returns what is left of EBX, which counts up. */
	.globl spin_in_32_bits
spin_in_32_bits:
	pushq %rbx
	movl %edi, %ecx
	xorl %ebx, %ebx
	pushq $0x23
	pushq $4f
	lretq
	.code32
4:	incl %ebx
	decl %ecx
	jnz 4b
	ljmp $0x33, $5f
	.code64
5:	movl %ebx, %eax
	popq %rbx
	ret
	.globl fault_in_32_bits, fault_in_32_bits_at
fault_in_32_bits:
	pushq $0x23
	pushq $fault_in_32_bits_at
	lretq
	.code32
fault_in_32_bits_at:
	cli
	.code64

	/* u64 hold_registers(u64 pattern, u64 rounds, u64 yields): fills XMM0-15 and the x87 stack from
	 * the pattern and compares them in every round, with or without a system call in between;
	 * returns the number of rounds in which something was lost. */
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
	fildq (%rsp)
	fld1
	faddp
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
	fistpq (%rsp) /* pattern + 1 */
	movq (%rsp), %rax
	subq %rbx, %rax
	decq %rax
	orq %rax, %rcx
	fld %st(1)
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
