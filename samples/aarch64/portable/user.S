/* User programs on AArch64: the start, system calls, catching of faults, functions that fault. */
#include "layout.h"

	.arch armv8-a+fp+simd
	.section .text.start, "ax"
	.globl _start
_start: /* X0 = program, X1 = argument */
	bl user_main
	mov x8, #SYS_EXIT
	svc #0
	udf #0

	.text
	/* word call_kernel(word number, word a, word b, word c, word d, word e) */
	.globl call_kernel
call_kernel:
	mov x8, x0
	mov x0, x1
	mov x1, x2
	mov x2, x3
	mov x3, x4
	mov x4, x5
	svc #0
	ret

	/* word return_address(word number, word what, word *at) */
	.globl return_address
return_address:
	mov x8, x0
	mov x0, x1
	adr x3, 1f
	str x3, [x2]
	svc #0
1:	ret

	/* bool catch_fault(void (*run)(word), word argument, struct fault *fault) */
	.globl catch_fault
catch_fault:
	stp x19, x20, [sp, #-112]!
	stp x21, x22, [sp, #16]
	stp x23, x24, [sp, #32]
	stp x25, x26, [sp, #48]
	stp x27, x28, [sp, #64]
	stp x29, x30, [sp, #80]
	str x2, [sp, #96]
	mov x19, x0
	mov x20, x1
	adr x0, 1f
	mov x1, sp
	mov x8, #SYS_CATCH
	svc #0
	mov x0, x20
	blr x19
	mov x0, #0
	mov x8, #SYS_CATCH
	svc #0
	mov x0, #0
	b 2f
1:	ldr x4, [sp, #96]
	stp x0, x1, [x4]
	stp x2, x3, [x4, #16]
	mov x0, #1
2:	ldp x21, x22, [sp, #16]
	ldp x23, x24, [sp, #32]
	ldp x25, x26, [sp, #48]
	ldp x27, x28, [sp, #64]
	ldp x29, x30, [sp, #80]
	ldp x19, x20, [sp], #112
	ret

	.macro faulting name, code:vararg
	.globl \name
\name:
	\code
	ret
	.endm
	faulting do_read_sctlr, mrs x1, sctlr_el1
	faulting do_write_sctlr, msr sctlr_el1, x1
	faulting do_read_midr, mrs x1, midr_el1
	faulting do_write_ttbr0, msr ttbr0_el1, x1
	faulting do_write_ttbr1, msr ttbr1_el1, x1
	faulting do_write_vbar, msr vbar_el1, x1
	faulting do_read_esr, mrs x1, esr_el1
	faulting do_read_elr, mrs x1, elr_el1
	faulting do_read_sp_el0, mrs x1, sp_el0
	faulting do_read_tpidr, mrs x1, tpidr_el1
	faulting do_write_thread, msr tpidrro_el0, x1
	faulting do_daifset, msr daifset, #2
	faulting do_daifclr, msr daifclr, #2
	faulting do_read_daif, mrs x1, daif
	faulting do_spsel, msr spsel, #0
	faulting do_tlbi, tlbi vmalle1
	faulting do_at, at s1e1r, x0
	faulting do_ic, ic iallu
	faulting do_dc, dc ivac, x0
	faulting do_eret, eret
	faulting do_hvc, .inst 0xd4000002
	faulting do_smc, .inst 0xd4000003
	faulting do_counter, mrs x1, cntvct_el0
	faulting do_undefined, udf #0
	faulting do_breakpoint, brk #0
	faulting do_read, ldr x1, [x0]
	faulting do_write, str x1, [x0]
	faulting do_jump, br x0

	.globl thread_word, sync_code, code_return, code_set_value
thread_word:
	mrs x0, tpidrro_el0
	ldr x0, [x0]
	ret
sync_code: /* (address, bytes) */
	mrs x2, ctr_el0
	mov x3, #4
	ubfx x4, x2, #16, #4
	lsl x4, x3, x4
	and x5, x2, #15
	lsl x5, x3, x5
	add x1, x0, x1
	neg x6, x4
	and x6, x0, x6
1:	dc cvau, x6
	add x6, x6, x4
	cmp x6, x1
	b.lo 1b
	dsb ish
	neg x6, x5
	and x6, x0, x6
2:	ic ivau, x6
	add x6, x6, x5
	cmp x6, x1
	b.lo 2b
	dsb ish
	isb
	ret
code_return: /* movz w0, #low; movk w0, #high, lsl #16; ret */
	ldr w2, =0xd65f03c0
	str w2, [x0, #8]
code_set_value:
	ldr w2, =0x52800000
	bfi w2, w1, #5, #16
	str w2, [x0]
	ldr w2, =0x72a00000
	lsr w3, w1, #16
	bfi w2, w3, #5, #16
	str w2, [x0, #4]
	mov x0, #12
	ret

	/* word hold_registers(word pattern, word rounds, word yields): fills V0-V31 from the pattern and compares them in
	 * every round, with or without a system call in between. */
	.globl hold_registers
	.macro for_v operation
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	\operation \n
	.endr
	.endm
	.macro fill_v n
	add x3, x0, #\n
	dup v\n\().2d, x3
	.endm
	.macro compare_v n
	add x3, x4, #\n
	umov x6, v\n\().d[0]
	umov x7, v\n\().d[1]
	eor x6, x6, x3
	eor x7, x7, x3
	orr x5, x5, x6
	orr x5, x5, x7
	.endm
hold_registers:
	mov x4, x0
	mov x9, x1
	mov x10, x2
	mov x11, #0
	for_v fill_v
1:	cbz x10, 2f
	mov x8, #SYS_YIELD
	svc #0
2:	mov x3, #300 /* time for the timer */
3:	subs x3, x3, #1
	b.ne 3b
	mov x5, #0
	for_v compare_v
	cmp x5, #0
	cinc x11, x11, ne
	subs x9, x9, #1
	b.ne 1b
	mov x0, x11
	ret
	.ltorg
