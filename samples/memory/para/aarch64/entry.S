/* The memory workload as a para-virtual kernel of AArch64: Linux's boot entry, the page tables and the stack. No page
 * table is mapped writable when they are loaded, so that they can be walked as they are. */
#include "arch.h"
#include "retrap_asm.h"

	.arch armv8-a
	.section .head.text, "ax"
	.globl _start
	.type _start, %function
_start: /* X0 = physical address of the device tree */
#include "start.S"

	/* void arch_end(word status): nothing of this run's own is left behind. */
	.text
	.globl arch_end
	.type arch_end, %function
arch_end:
	ldr x1, =boot_stack
	ldr x2, =boot_stack_top
	mov sp, x2
1:	stp xzr, xzr, [x1], #16
	cmp x1, x2
	b.ne 1b
	mov x8, #RETRAP_CALL_SHUTDOWN
	ldr x9, =RETRAP_CALL
	blr x9
2:	b 2b
	.ltorg
	.size arch_end, . - arch_end

	.section .bss.page_tables, "aw", %nobits
	.balign 4096
	.globl page_tables, page_tables_end, kernel_table, kernel_middle, empty_table, direct_tables
page_tables:
kernel_table:
	.skip 4096
kernel_upper:
	.skip 4096
kernel_middle: /* from 0xffff800000000000 on */
	.skip 4096
empty_table: /* the lower half without a process */
	.skip 4096
direct_tables:
	.skip DIRECT_PAGES * 8
page_tables_end:

	.section .volatile, "aw", %nobits
	.balign 4096
	.globl boot_stack
boot_stack:
	.skip 32768
	.globl boot_stack_top
boot_stack_top:
