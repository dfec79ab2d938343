/* x86-64, para-virtual: the boot, the first page tables, and code that is copied by the checks. */
#include "arch.h"
#include "layout.h"
#include "retrap_asm.h"

/* Accessed and dirty are set from the start, so that they never change. */
#define DIRECTORY (PTE_P | PTE_W | PTE_A)
#define LEAF (PTE_P | PTE_W | PTE_A | PTE_D)
#define PAGES (0x4000000 / 0x1000)

	.section .head.text, "ax"
	.globl startup_64
	.type startup_64, @function
startup_64: /* identity-mapped, interrupts off, RSI = physical address of boot_params */
	leaq boot_stack_top(%rip), %rsp
	movq %rsi, %rbx
	/* Pages of the direct map, and of the image, whose rights are set in arch_start: only its text is executable. */
	leaq direct_pt(%rip), %rdi
	movq $LEAF, %rax
	btsq $63, %rax
	movl $PAGES, %ecx
	call fill
	leaq image_pt(%rip), %rdi
	movl $LEAF + 0x1000000, %eax
	leaq __text_end(%rip), %rcx
	subl %eax, %ecx /* less the image's address, and the bits of an entry */
	addl $LEAF, %ecx
	shrl $12, %ecx
	movl $512, %edx
	subl %ecx, %edx
	call fill
	btsq $63, %rax
	movl %edx, %ecx
	call fill
	leaq direct_pd(%rip), %rdi
	leaq direct_pt(%rip), %rax
	addq $DIRECTORY, %rax
	movl $PAGES / 512, %ecx
	call fill
	.macro point entry, table
	leaq \table + DIRECTORY(%rip), %rax
	movq %rax, \entry(%rip)
	.endm
	point kernel_pml4+8*273, direct_pdpt /* DIRECT_MAP */
	point kernel_pml4+8*511, image_pdpt
	point direct_pdpt, direct_pd
	point image_pdpt+8*510, image_pd
	point image_pd+8*8, image_pt
	/* The tables themselves are not mapped writable. */
	leaq page_tables(%rip), %rdx
	leaq direct_pt(%rip), %rdi
	leaq image_pt(%rip), %r8
1:	movl %edx, %eax
	shrl $12, %eax
	andq $~PTE_W, (%rdi, %rax, 8)
	andl $511, %eax
	andq $~PTE_W, (%r8, %rax, 8)
	addq $0x1000, %rdx
	leaq page_tables_end(%rip), %rax
	cmpq %rax, %rdx
	jb 1b
	leaq kernel_pml4(%rip), %rdi
	xorl %esi, %esi
	movl $RETRAP_CALL_NEW_BASE, %eax
	movq $RETRAP_CALL, %rcx
	movq $high, %rdx
	pushq %rdx /* where the call returns to: this address is not mapped any more */
	jmp *%rcx
fill: /* ECX entries from RDI on, from RAX on, page by page */
1:	movq %rax, (%rdi)
	addq $0x1000, %rax
	addq $8, %rdi
	decl %ecx
	jnz 1b
	ret
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

	.section .bss.page_tables, "aw", @nobits
	.balign 4096
	.globl page_tables, page_tables_end, kernel_pml4, direct_pt
page_tables:
kernel_pml4:
	.skip 4096
direct_pdpt:
	.skip 4096
image_pdpt:
	.skip 4096
image_pd:
	.skip 4096
direct_pd:
	.skip 4096
image_pt:
	.skip 4096
	.globl image_pt
direct_pt: /* 64 MiB of physical memory */
	.skip PAGES * 8
page_tables_end:

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

#include "contexts.S"

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

#include "user_image.S"
