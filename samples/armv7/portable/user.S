/* User programs on ARMv7: the start, system calls, catching of faults, functions that fault. */
#include "layout.h"
#include "arch.h"

	.syntax unified
	.arch_extension virt
	.arch_extension sec
	.fpu neon-vfpv4
	.section .text.start, "ax"
	.globl _start
_start: /* R0 = program, R1 = argument */
	bl user_main
	mov r7, #SYS_EXIT
	svc #0
	udf #0

	.text
	/* word call_kernel(word number, word a, word b, word c, word d, word e) */
	.globl call_kernel
call_kernel:
	push {r4, r7}
	mov r7, r0
	mov r0, r1
	mov r1, r2
	mov r2, r3
	ldr r3, [sp, #8]
	ldr r4, [sp, #12]
	svc #0
	pop {r4, r7}
	bx lr

	/* word return_address(word number, word what, word *at) */
	.globl return_address
return_address:
	push {r4, r7}
	mov r7, r0
	mov r0, r1
	adr r3, 1f
	str r3, [r2]
	svc #0
1:	pop {r4, r7}
	bx lr

	/* bool catch_fault(void (*run)(word), word argument, struct fault *fault) */
	.globl catch_fault
catch_fault:
	push {r2, r4-r11, lr}
	mov r4, r0
	mov r5, r1
	adr r0, 1f
	mov r1, sp
	mov r7, #SYS_CATCH
	svc #0
	mov r0, r5
	blx r4
	mov r0, #0
	mov r7, #SYS_CATCH
	svc #0
	mov r0, #0
	b 2f
1:	ldr r4, [sp]
	stm r4, {r0-r3}
	mov r0, #1
2:	pop {r2, r4-r11, pc}

	.macro faulting name, code:vararg
	.globl \name
\name:
	\code
	bx lr
	.endm
	faulting do_read_sctlr, mrc p15, 0, r1, c1, c0, 0
	faulting do_write_sctlr, mcr p15, 0, r1, c1, c0, 0
	faulting do_read_midr, mrc p15, 0, r1, c0, c0, 0
	faulting do_write_ttbr0, mcr p15, 0, r1, c2, c0, 0
	faulting do_write_dacr, mcr p15, 0, r1, c3, c0, 0
	faulting do_write_vbar, mcr p15, 0, r1, c12, c0, 0
	faulting do_read_dfsr, mrc p15, 0, r1, c5, c0, 0
	faulting do_tlbiall, mcr p15, 0, r1, c8, c7, 0
	faulting do_tlbimva, mcr p15, 0, r1, c8, c7, 1
	faulting do_iciallu, mcr p15, 0, r1, c7, c5, 0
	faulting do_dccimvac, mcr p15, 0, r1, c7, c14, 1
	faulting do_read_tpidrprw, mrc p15, 0, r1, c13, c0, 4
	faulting do_write_tpidruro, mcr p15, 0, r1, c13, c0, 3
	faulting do_write_contextidr, mcr p15, 0, r1, c13, c0, 1
	faulting do_read_fpexc, vmrs r1, fpexc
	faulting do_write_fpexc, vmsr fpexc, r1
	faulting do_hvc, .inst 0xe1400070
	faulting do_smc, .inst 0xe1600070
	faulting do_undefined, .inst 0xe7f000f0
	faulting do_breakpoint, .inst 0xe1200070
	faulting do_read, ldr r1, [r0]
	faulting do_write, str r1, [r0]
	faulting do_jump, bx r0

	.globl thread_word, sync_code, code_return, code_set_value
thread_word:
	mrc p15, 0, r0, c13, c0, 3
	ldr r0, [r0]
	bx lr
sync_code: /* cache maintenance is privileged: the kernel does it */
	push {r4, r7}
	ldr r7, =SYS_SYNC
	svc #0
	pop {r4, r7}
	bx lr
code_return: /* movw r0, #low; movt r0, #high; bx lr */
	ldr r2, =0xe12fff1e
	str r2, [r0, #8]
code_set_value:
	push {r4, r5}
	movw r2, #0xfff
	ldr r3, =0xe3000000
	and r4, r1, r2
	orr r3, r3, r4
	ubfx r4, r1, #12, #4
	orr r3, r3, r4, lsl #16
	ldr r5, =0xe3400000
	and r4, r2, r1, lsr #16
	orr r5, r5, r4
	lsr r4, r1, #28
	orr r5, r5, r4, lsl #16
	str r3, [r0]
	str r5, [r0, #4]
	mov r0, #12
	pop {r4, r5}
	bx lr

	/* word hold_registers(word pattern, word rounds, word yields): fills D0-D31 from the pattern and compares them in
	 * every round, with or without a system call in between. */
	.globl hold_registers
	.macro for_d operation
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	\operation \n
	.endr
	.endm
	.macro fill_d n
	add r1, r4, #\n
	vmov d\n, r1, r1
	.endm
	.macro compare_d n
	vmov r1, r2, d\n
	add r3, r4, #\n
	eor r1, r1, r3
	eor r2, r2, r3
	orr r8, r8, r1
	orr r8, r8, r2
	.endm
hold_registers:
	push {r4-r10, lr}
	mov r4, r0
	mov r5, r1
	mov r6, r2
	mov r9, #0
	for_d fill_d
1:	cmp r6, #0
	beq 2f
	mov r7, #SYS_YIELD
	svc #0
2:	movw r1, #300 /* time for the timer */
3:	subs r1, r1, #1
	bne 3b
	mov r8, #0
	for_d compare_d
	cmp r8, #0
	addne r9, r9, #1
	subs r5, r5, #1
	bne 1b
	mov r0, r9
	pop {r4-r10, pc}
	.ltorg
