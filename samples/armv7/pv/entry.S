/* ARMv7-A, para-virtual: the start without translation, the first tables, and code that is copied by the checks. */
#include "arch.h"
#include "layout.h"
#include "retrap_asm.h"

	.syntax unified
	.section .head.text, "ax"
	.globl _start
	.type _start, %function
_start: /* R2 = physical address of the device tree, by Linux's boot protocol */
	mov r8, r2
	adr r0, _start
	ldr r1, =_start
	sub r9, r0, r1 /* physical - virtual */
	ldr r10, =kernel_table
	add r10, r10, r9
	ldr r9, =RETRAP_CALL
	mov r12, #RETRAP_CALL_NEW_BASE
	mov r0, r10
	mov r1, #0
	blx r9
	mov r0, r10
	mov r1, #1
	blx r9
	ldr pc, =high
	.ltorg
high:
	ldr sp, =boot_stack_top
	mov r0, r8
	bl kernel_main
	udf #0
	.ltorg
	.size _start, . - _start

	.section .retrap.note, "a", %note
	.balign 4
	.long 7, 4, RETRAP_NOTE_VERSION
	.asciz "retrap"
	.balign 4
	.long RETRAP_VERSION

	.section .data.page_tables, "aw"
	.balign 16384
	.globl kernel_table, image_tables, empty_table
#define SECTION_RW 0x1140e /* shareable, TEX 001 C B, kernel RW, domain 0 */
#define SECTION_XN 0x10
#define SECTION_DEVICE 0x00416 /* TEX 000 B, XN, kernel RW */
#define TABLE 1
kernel_table:
	.fill 0x401, 4, 0
	.long 0x40100000 | SECTION_RW /* the start, where it is loaded: dropped by arch_start */
	.long 0x40200000 | SECTION_RW
	.fill 0x7fd, 4, 0
	.set i, 0 /* 0xc0000000: 64 MiB */
	.rept 64
	.if i == 1 || i == 2
	.long image_tables - 0x80000000 + (i - 1) * 1024 + TABLE
	.else
	.long 0x40000000 + (i << 20) | SECTION_RW | SECTION_XN
	.endif
	.set i, i + 1
	.endr
	.fill 0x1c0, 4, 0
	.fill 16, 4, 0 /* 0xe00: devices, from 0xe0000000 */
	.fill 0x1f0, 4, 0
image_tables: /* rights by section are set in arch_start */
	.set i, 0x40100000
	.rept 512
	.long i + 0x45e /* small, TEX 001 C B, S, kernel RW */
	.set i, i + 0x1000
	.endr
	.balign 8192
empty_table:
	.fill 2048, 4, 0

	.section .volatile, "aw", %nobits
	.balign 4096
	.skip 16384
	.globl boot_stack_top
boot_stack_top:

	.text
	/* bool catch_fault(void (*run)(word), word argument) */
	.globl catch_fault
	.type catch_fault, %function
catch_fault:
	push {r4-r12, lr}
	ldr r2, =catch_stack
	ldr r3, [r2]
	push {r3, r4}
	str sp, [r2]
	mov r3, r0
	mov r0, r1
	blx r3
	mov r0, #0
catch_leave:
	pop {r3, r4}
	ldr r2, =catch_stack
	str r3, [r2]
	pop {r4-r12, pc}
	.size catch_fault, . - catch_fault

	.globl catch_resume
	.type catch_resume, %function
catch_resume:
	ldr r2, =catch_stack
	ldr sp, [r2]
	mov r0, #1
	b catch_leave
	.size catch_resume, . - catch_resume

	/* void switch_stacks(word *save, word load) */
	.globl switch_stacks
	.type switch_stacks, %function
switch_stacks:
	push {r4-r11, r12, lr}
	str sp, [r0]
	mov sp, r1
	pop {r4-r11, r12, pc}
	.size switch_stacks, . - switch_stacks

	.globl fpu_save, fpu_load, fpu_reset
	.fpu neon-vfpv4
fpu_save:
	vstm r0!, {d0-d15}
	vstm r0!, {d16-d31}
	vmrs r1, fpscr
	str r1, [r0]
	bx lr
fpu_load:
	vldm r0!, {d0-d15}
	vldm r0!, {d16-d31}
	ldr r1, [r0]
	vmsr fpscr, r1
	bx lr
fpu_reset:
	mov r1, #0
	vmsr fpscr, r1
	bx lr

	/* What is sensitive here, as functions that run wherever they are copied to. */
	.macro variant name, result
	.pushsection .rodata.variants, "a"
	.long \name, \name\()_end, \result
	.popsection
\name:
	.endm
	.macro end name
	bx lr
\name\()_end:
	.endm
	.macro number register, value
	movw \register, #(\value) & 0xffff
	movt \register, #(\value) >> 16 & 0xffff
	.endm

	.section .rodata.variants, "a"
	.balign 4
	.globl pv_variants, pv_variants_end
pv_variants:
	.section .rodata
	.balign 4
	variant off, RETRAP_INTERRUPTS_OFF
	number r1, RETRAP_INTERRUPTS
	mov r0, #RETRAP_INTERRUPTS_OFF
	str r0, [r1]
	ldr r0, [r1]
	end off
	variant on, RETRAP_INTERRUPTS_ON
	number r1, RETRAP_INTERRUPTS
	mov r2, #RETRAP_INTERRUPTS_OFF
	mov r0, #RETRAP_INTERRUPTS_ON
	str r0, [r1]
	ldr r0, [r1]
	str r2, [r1]
	end on
	variant version, RETRAP_VERSION
	mov r2, lr
	number r1, RETRAP_CALL
	mov r12, #RETRAP_CALL_VERSION
	blx r1
	mov lr, r2
	end version
	variant plain, 0x2a
	mov r0, #0x2a
	end plain
	variant unknown, -RETRAP_ERROR_UNKNOWN_CALL
	mov r2, lr
	number r1, RETRAP_CALL
	movw r12, #4711
	blx r1
	mov lr, r2
	end unknown
	variant mask, 0
	number r1, RETRAP_MASK
	ldr r0, [r1]
	end mask
	.section .rodata.variants, "a"
pv_variants_end:
	.text
	.ltorg

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
