/* The memory workload as a para-virtual kernel of x86-64: the 64-bit Linux boot entry, the page tables and the stack.
 * No page table is mapped writable when they are loaded, so that they can be walked as they are. */
#include "arch.h"
#include "retrap_asm.h"

#define PHYS(symbol) ((symbol) - KERNEL_BASE)
#define DIRECTORY (PTE_P | PTE_W | PTE_A)
#define PAGE_BITS (PTE_P | PTE_W | PTE_A | PTE_D)
#define PAGES (0x4000000 / 0x1000)

	.section .retrap.note, "a", @note
	.balign 4
	.long 7, 4, RETRAP_NOTE_VERSION
	.asciz "retrap"
	.balign 4
	.long RETRAP_VERSION

	.section .head.text, "ax"
	.globl startup_64
	.type startup_64, @function
startup_64: /* identity-mapped; RSI = physical address of boot_params */
	cld
	/* The direct map, 64 MiB in small pages; the image, 2 MiB. */
	leaq direct_pt(%rip), %rdi
	movq $PAGE_BITS, %rax
	btsq $63, %rax
	movl $PAGES, %ecx
1:	movq %rax, (%rdi)
	addq $0x1000, %rax
	addq $8, %rdi
	decl %ecx
	jnz 1b
	leaq image_pt(%rip), %rdi
	movl $PAGE_BITS + 0x1000000, %eax
	movl $512, %ecx
2:	movq %rax, (%rdi)
	addq $0x1000, %rax
	addq $8, %rdi
	decl %ecx
	jnz 2b
	leaq direct_pd(%rip), %rdi
	leaq direct_pt(%rip), %rax
	addq $DIRECTORY, %rax
	movl $PAGES / 512, %ecx
3:	movq %rax, (%rdi)
	addq $0x1000, %rax
	addq $8, %rdi
	decl %ecx
	jnz 3b
	.macro point entry, table
	leaq \table + DIRECTORY(%rip), %rax
	movq %rax, \entry(%rip)
	.endm
	point kernel_pml4+8*273, direct_pdpt /* DIRECT_MAP */
	point kernel_pml4+8*511, image_pdpt
	point direct_pdpt, direct_pd
	point image_pdpt+8*510, image_pd
	point image_pd+8*8, image_pt
	/* Tables lose their right to be written, in both. */
	leaq page_tables(%rip), %rbx
	leaq page_tables_end(%rip), %rdx
	leaq direct_pt(%rip), %rdi
	leaq image_pt(%rip), %r8
4:	movq %rbx, %rax
	shrq $12, %rax
	andq $~PTE_W, (%rdi, %rax, 8)
	andl $511, %eax
	andq $~PTE_W, (%r8, %rax, 8)
	addq $0x1000, %rbx
	cmpq %rdx, %rbx
	jb 4b
	movq %rsi, %r12
	leaq kernel_pml4(%rip), %rdi
	xorl %esi, %esi
	movl $RETRAP_CALL_NEW_BASE, %eax
	movq $RETRAP_CALL, %rcx
	leaq early_stack_top(%rip), %rsp
	movq $high, %rdx
	pushq %rdx /* where the call returns to: this address is not mapped any more */
	jmp *%rcx
high:
	movq $boot_stack_top, %rsp
	xorl %ebp, %ebp
	movq %r12, %rdi
	call kernel_main
0:	jmp 0b
	.size startup_64, . - startup_64

	/* void arch_end(word status): nothing of this run's own is left behind. */
	.text
	.globl arch_end
	.type arch_end, @function
arch_end:
	movq %rdi, %rbx
	movq $boot_stack, %rdi
	movl $(boot_stack_top - boot_stack) / 8, %ecx
	xorl %eax, %eax
	rep stosq
	movq $boot_stack_top, %rsp
	movq %rbx, %rdi
	movl $RETRAP_CALL_SHUTDOWN, %eax
	movq $RETRAP_CALL, %rcx
	call *%rcx
0:	jmp 0b
	.size arch_end, . - arch_end

	.section .bss.page_tables, "aw", @nobits
	.balign 4096
	.globl page_tables, page_tables_end, kernel_pml4
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
direct_pt: /* last: arch.c finds it by that */
	.skip PAGES * 8
page_tables_end:

	.section .volatile, "aw", @nobits
	.balign 4096
	.skip 64
early_stack_top:
	.skip 4096 - 64
	.globl boot_stack
boot_stack:
	.skip 32768
	.globl boot_stack_top
boot_stack_top:
