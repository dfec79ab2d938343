/* x86-64, para-virtual: the boot, the first page tables, and code that is copied by the checks. */
#include "arch.h"
#include "layout.h"
#include "retrap_asm.h"

#define PHYS(symbol) ((symbol) - KERNEL_BASE)

	.section .head.text, "ax"
	.globl startup_64
	.type startup_64, @function
startup_64: /* identity-mapped, interrupts off, RSI = physical address of boot_params */
	leaq boot_stack_top(%rip), %rsp
	movq %rsi, %rbx
	movl $RETRAP_CALL_NEW_BASE, %eax
	leaq kernel_pml4(%rip), %rdi
	xorl %esi, %esi
	movq $RETRAP_CALL, %r11
	call *%r11
	movq $high, %rax
	jmp *%rax
high:
	movq $boot_stack_top, %rsp
	xorl %ebp, %ebp
	movq %rbx, %rdi
	call kernel_main
	ud2
	.size startup_64, . - startup_64

	.section .retrap.note, "a", @note
	.balign 4
	.long 7, 4, RETRAP_NOTE_VERSION
	.asciz "retrap"
	.balign 4
	.long RETRAP_VERSION

	/* Accessed and dirty are set from the start, so that they never change. */
#define DIRECTORY (PTE_P | PTE_W | PTE_A)
#define LEAF (PTE_P | PTE_W | PTE_A | PTE_D)
	.section .data.page_tables, "aw"
	.balign 4096
	.globl kernel_pml4, identity_pdpt, identity_pd, image_pt
kernel_pml4:
	.quad PHYS(identity_pdpt) + DIRECTORY
	.fill 272, 8, 0
	.quad PHYS(direct_pdpt) + DIRECTORY /* 273: DIRECT_MAP */
	.fill 237, 8, 0
	.quad PHYS(image_pdpt) + DIRECTORY /* 511 */
identity_pdpt: /* the loader's view, dropped by arch_start */
	.quad PHYS(identity_pd) + DIRECTORY
	.fill 511, 8, 0
identity_pd:
	.set i, 0
	.rept 512
	.quad i + LEAF + PTE_LARGE
	.set i, i + 0x200000
	.endr
direct_pdpt:
	.quad PHYS(direct_pd) + DIRECTORY
	.fill 511, 8, 0
direct_pd: /* 64 MiB of physical memory, not executable */
	.set i, 0
	.rept 32
	.quad i + LEAF + PTE_LARGE + PTE_NX
	.set i, i + 0x200000
	.endr
	.fill 480, 8, 0
image_pdpt:
	.fill 510, 8, 0
	.quad PHYS(image_pd) + DIRECTORY
	.quad 0
image_pd:
	.fill 8, 8, 0
	.quad PHYS(image_pt) + DIRECTORY
	.fill 503, 8, 0
image_pt: /* rights by section are set in arch_start */
	.set i, 0x1000000
	.rept 512
	.quad i + LEAF
	.set i, i + 0x1000
	.endr

	.section .volatile, "aw", @nobits
	.balign 4096
	.skip 16384
	.globl boot_stack_top
boot_stack_top:

	.text
	.macro for_registers operation, registers:vararg
	.irp register, \registers
	\operation %\register
	.endr
	.endm

	/* bool catch_fault(void (*run)(word), word argument) */
	.globl catch_fault
	.type catch_fault, @function
catch_fault:
	for_registers pushq, rbx, rbp, r12, r13, r14, r15
	pushq catch_stack
	movq %rsp, catch_stack
	movq %rdi, %rax
	movq %rsi, %rdi
	call *%rax
	xorl %eax, %eax
catch_leave:
	popq catch_stack
	for_registers popq, r15, r14, r13, r12, rbp, rbx
	ret
	.size catch_fault, . - catch_fault

	.globl catch_resume
	.type catch_resume, @function
catch_resume:
	movq catch_stack, %rsp
	movl $1, %eax
	jmp catch_leave
	.size catch_resume, . - catch_resume

	/* void switch_stacks(word *save, word load) */
	.globl switch_stacks
	.type switch_stacks, @function
switch_stacks:
	for_registers pushq, rbx, rbp, r12, r13, r14, r15
	movq %rsp, (%rdi)
	movq %rsi, %rsp
	for_registers popq, r15, r14, r13, r12, rbp, rbx
	ret
	.size switch_stacks, . - switch_stacks

	/* What is sensitive here, as functions that run wherever they are copied to. */
	.macro variant name, result
	.pushsection .rodata.variants, "a"
	.quad \name, \name\()_end, \result
	.popsection
\name:
	.endm
	.macro end name
	ret
\name\()_end:
	.endm

	.section .rodata.variants, "a"
	.balign 8
	.globl pv_variants, pv_variants_end
pv_variants:
	.section .rodata
	variant off, RETRAP_INTERRUPTS_OFF
	movq $-0x200, RETRAP_INTERRUPTS
	movq RETRAP_INTERRUPTS, %rax
	end off
	variant on, RETRAP_INTERRUPTS_ON
	movq $0, RETRAP_INTERRUPTS
	movq RETRAP_INTERRUPTS, %rax
	movq $-0x200, RETRAP_INTERRUPTS
	end on
	variant version, RETRAP_VERSION
	xorl %eax, %eax
	movq $RETRAP_CALL, %rcx
	call *%rcx
	end version
	variant plain, 0x2a
	xorl %eax, %eax
	movb $0x2a, %al
	end plain
	variant unknown, -RETRAP_ERROR_UNKNOWN_CALL
	movl $4711, %eax
	movq $RETRAP_CALL, %rcx
	call *%rcx
	end unknown
	variant mask, 0
	movq RETRAP_MASK, %rax
	end mask
	.section .rodata.variants, "a"
pv_variants_end:

	.bss
	.balign 8
	.globl catch_stack
catch_stack:
	.skip 8

	.section .rodata
	.balign 4096
	.globl user_image, user_image_end
user_image:
	.incbin USER_IMAGE
user_image_end:
	.balign 4096
