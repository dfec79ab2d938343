/* i386, para-virtual: the boot, the first page tables, and code that is copied by the checks. */
#include "arch.h"
#include "layout.h"
#include "retrap_asm.h"

#define PHYS(symbol) ((symbol) - KERNEL_BASE)
/* Accessed and dirty are set from the start, so that they never change. */
#define DIRECTORY (PTE_P | PTE_W | PTE_A)
#define LEAF (PTE_P | PTE_W | PTE_A | PTE_D)
#define PAGES (0x4000000 / 0x1000)
#define NX 0x80000000 /* of an entry's upper word */

	.section .head.text, "ax"
	.globl startup_32
	.type startup_32, @function
startup_32: /* paging off, interrupts off, ESI = physical address of boot_params */
	movl $PHYS(boot_stack_top), %esp
	cld
	/* Pages of the direct map, and of the image, whose rights are set in arch_start: only its text is executable. */
	movl $PHYS(direct_pt), %edi
	movl $LEAF, %eax
	movl $NX, %edx
	movl $PAGES, %ecx
	call fill
	movl $PHYS(image_pt), %edi
	movl $LEAF + 0x1000000, %eax
	xorl %edx, %edx
	movl $PHYS(__text_end) - 0x1000000, %ecx
	shrl $12, %ecx
	movl $512, %ebx
	subl %ecx, %ebx
	call fill
	movl $NX, %edx
	movl %ebx, %ecx
	call fill
	movl $PHYS(kernel_pd) + 8 * 128, %edi /* DIRECT_MAP */
	movl $PHYS(direct_pt) + DIRECTORY, %eax
	xorl %edx, %edx
	movl $PAGES / 512, %ecx
	call fill
	movl $PHYS(image_pt) + DIRECTORY, PHYS(kernel_pd) + 8 * 8
	movl $PHYS(kernel_pd) + PTE_P, PHYS(kernel_pdpt) + 8 * 3
	/* The tables themselves are not mapped writable. */
	movl $PHYS(page_tables), %eax
1:	movl %eax, %ecx
	shrl $12, %ecx
	andl $~PTE_W, PHYS(direct_pt)(, %ecx, 8)
	andl $511, %ecx
	andl $~PTE_W, PHYS(image_pt)(, %ecx, 8)
	addl $0x1000, %eax
	cmpl $PHYS(page_tables_end), %eax
	jb 1b
	movl $RETRAP_CALL_NEW_BASE, %eax
	movl $PHYS(kernel_pdpt), %ebx
	xorl %ecx, %ecx
	movl $RETRAP_CALL, %edx
	pushl $high /* where the call returns to: this address is not mapped any more */
	jmp *%edx
fill: /* ECX entries from EDI on, from EDX:EAX on, page by page */
1:	movl %eax, (%edi)
	movl %edx, 4(%edi)
	addl $0x1000, %eax
	addl $8, %edi
	decl %ecx
	jnz 1b
	ret
high:
	movl $boot_stack_top, %esp
	xorl %ebp, %ebp
	pushl %esi
	call kernel_main
	ud2
	.size startup_32, . - startup_32

	.section .retrap.note, "a", @note
	.balign 4
	.long 7, 4, RETRAP_NOTE_VERSION
	.asciz "retrap"
	.balign 4
	.long RETRAP_VERSION

	.section .bss.page_tables, "aw", @nobits
	.balign 4096
	.globl page_tables, page_tables_end, kernel_pdpt, kernel_pd, image_pt, direct_pt
page_tables:
kernel_pdpt:
	.skip 4096
kernel_pd: /* from 0xc0000000 on: the image at 0xc1000000, 64 MiB of physical memory at DIRECT_MAP */
	.skip 4096
image_pt:
	.skip 4096
direct_pt:
	.skip PAGES * 8
page_tables_end:

	.section .volatile, "aw", @nobits
	.balign 4096
	.skip 16384
	.globl boot_stack_top
boot_stack_top:

	.text
#include "contexts.S"

	/* What is sensitive here, as functions that run wherever they are copied to. */
	.macro variant name, result
	.pushsection .rodata.variants, "a"
	.long \name, \name\()_end, \result
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
	movl $-0x200, RETRAP_INTERRUPTS
	movl RETRAP_INTERRUPTS, %eax
	end off
	variant on, RETRAP_INTERRUPTS_ON
	movl $0, RETRAP_INTERRUPTS
	movl RETRAP_INTERRUPTS, %eax
	movl $-0x200, RETRAP_INTERRUPTS
	end on
	variant version, RETRAP_VERSION
	xorl %eax, %eax
	movl $RETRAP_CALL, %edx
	call *%edx
	end version
	variant plain, 0x2a
	xorl %eax, %eax
	movb $0x2a, %al
	end plain
	variant unknown, -RETRAP_ERROR_UNKNOWN_CALL
	movl $4711, %eax
	movl $RETRAP_CALL, %edx
	call *%edx
	end unknown
	variant mask, 0
	movl RETRAP_MASK, %eax
	end mask
	.section .rodata.variants, "a"
pv_variants_end:

	.bss
	.balign 8
	.globl catch_stack
catch_stack:
	.skip 4

#include "user_image.S"
