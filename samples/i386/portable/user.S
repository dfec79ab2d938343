/* User programs on i386: the start, system calls by SYSENTER and INT 0x80, catching of faults, functions
 * that fault. A function that is called by catch_fault finds its argument in EDI and ESI as well. */
#include "layout.h"

	.section .text.start, "ax"
	.globl _start
_start: /* EDI = program, ESI = argument */
	pushl %esi
	pushl %edi
	call user_main
	movl %eax, %ebx
	movl $SYS_EXIT, %eax
	int $0x80
	ud2

	.text
	/* word call_kernel(word number, word a, word b, word c, word d, word e) */
	.globl call_kernel
call_kernel:
	pushl %ebx
	pushl %ebp
	pushl %esi
	pushl %edi
	movl 20(%esp), %eax
	movl 24(%esp), %ebx
	movl 28(%esp), %esi
	movl 32(%esp), %edi
	movl 36(%esp), %ebp
	pushl 40(%esp) /* the fifth is on the stack */
	movl %esp, %ecx
	movl $1f, %edx
	sysenter
1:	addl $4, %esp
	popl %edi
	popl %esi
	popl %ebp
	popl %ebx
	ret

	/* word return_address(word number, word what, word *at) */
	.globl return_address
return_address:
	pushl %ebx
	movl 8(%esp), %eax
	movl 12(%esp), %ebx
	movl 16(%esp), %ecx
	movl $1f, (%ecx)
	int $0x80
1:	popl %ebx
	ret

	/* bool catch_fault(void (*run)(word), word argument, struct fault *fault) */
	.globl catch_fault
catch_fault:
	pushl %ebx
	pushl %ebp
	pushl %esi
	pushl %edi
	movl $1f, %ebx
	movl %esp, %esi
	movl $SYS_CATCH, %eax
	int $0x80
	movl 24(%esp), %edi
	movl %edi, %esi
	pushl %edi
	call *24(%esp)
	addl $4, %esp
	xorl %ebx, %ebx
	movl $SYS_CATCH, %eax
	int $0x80
	xorl %eax, %eax
	jmp 2f
1:	movl 28(%esp), %eax
	movl %edi, (%eax)
	movl %esi, 4(%eax)
	movl %edx, 8(%eax)
	movl %ebx, 12(%eax)
	movl $1, %eax
2:	popl %edi
	popl %esi
	popl %ebp
	popl %ebx
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
	faulting do_read_cr0, movl %cr0, %eax
	faulting do_write_cr3, movl %eax, %cr3
	faulting do_read_dr7, movl %dr7, %eax
	faulting do_rdmsr, rdmsr
	faulting do_wrmsr, wrmsr
	faulting do_lgdt, lgdt (%edi)
	faulting do_lidt, lidt (%edi)
	faulting do_lldt, lldt %ax
	faulting do_ltr, ltr %ax
	faulting do_lmsw, lmsw %ax
	faulting do_clts, clts
	faulting do_invlpg, invlpg (%edi)
	faulting do_wbinvd, wbinvd
	faulting do_sysexit, sysexit
	faulting do_rdpmc, rdpmc
	faulting do_int, int $0x20 /* a gate of the kernel's */
	faulting do_far_jump, ljmp $0x10, $0
	faulting do_kernel_ds, movw kernel_data, %ds
	faulting do_kernel_pop, lss kernel_data, %esp
	faulting do_undefined, ud2
	faulting do_breakpoint, int3
	faulting do_read, movl (%edi), %eax
	faulting do_write, movl %eax, (%edi)
	faulting do_jump, jmp *%edi

	.balign 4
kernel_data: /* a selector, and a far pointer with the same */
	.long 0x18
	.word 0x18

	.globl thread_word, sync_code, code_return, code_set_value
thread_word:
	movl %gs:0, %eax
	ret
sync_code: /* a serialising instruction */
	pushl %ebx
	xorl %eax, %eax
	cpuid
	popl %ebx
	ret
code_return: /* mov $value, %eax; ret */
	movl 4(%esp), %edx
	movl 8(%esp), %ecx
	movb $0xb8, (%edx)
	movl %ecx, 1(%edx)
	movb $0xc3, 5(%edx)
	movl $6, %eax
	ret
code_set_value:
	movl 4(%esp), %edx
	movl 8(%esp), %ecx
	movl %ecx, 1(%edx)
	movl $6, %eax
	ret

	/* word hold_registers(word pattern, word rounds, word yields): fills XMM0-7 and the x87 stack from
	 * the pattern and compares them in every round, with or without a system call in between. */
	.globl hold_registers
hold_registers:
	pushl %ebx
	pushl %ebp
	pushl %esi
	pushl %edi
	movl 20(%esp), %ebx
	movl 24(%esp), %ebp
	movl 28(%esp), %esi
	xorl %edi, %edi
	subl $32, %esp
	.macro for_xmm operation
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	\operation \n
	.endr
	.endm
	.macro fill_xmm n
	leal \n(%ebx), %eax
	movd %eax, %xmm\n
	pshufd $0, %xmm\n, %xmm\n
	.endm
	.macro compare_xmm n
	movdqu %xmm\n, (%esp)
	leal \n(%ebx), %eax
	xorl (%esp), %eax
	orl %eax, %ecx
	leal \n(%ebx), %eax
	xorl 4(%esp), %eax
	orl %eax, %ecx
	leal \n(%ebx), %eax
	xorl 8(%esp), %eax
	orl %eax, %ecx
	leal \n(%ebx), %eax
	xorl 12(%esp), %eax
	orl %eax, %ecx
	.endm
	for_xmm fill_xmm
	fninit
	movl %ebx, (%esp)
	fildl (%esp)
1:	testl %esi, %esi
	jz 2f
	movl $SYS_YIELD, %eax
	movl %esp, %ecx
	movl $2f, %edx
	sysenter
2:	movl $300, %eax /* time for the timer */
3:	decl %eax
	jnz 3b
	xorl %ecx, %ecx
	for_xmm compare_xmm
	fld %st(0)
	fistpl (%esp)
	movl (%esp), %eax
	subl %ebx, %eax
	orl %eax, %ecx
	cmpl $1, %ecx
	sbbl $-1, %edi /* one more when ECX is not zero */
	decl %ebp
	jnz 1b
	movl %edi, %eax
	addl $32, %esp
	popl %edi
	popl %esi
	popl %ebp
	popl %ebx
	ret
