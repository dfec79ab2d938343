/* User programs on MIPS32: the start, system calls, catching of faults, functions that fault. */
#include "layout.h"

#define zero $0
#define v0 $2
#define v1 $3
#define a0 $4
#define a1 $5
#define a2 $6
#define a3 $7
#define t0 $8
#define t1 $9
#define t2 $10
#define t3 $11
#define s0 $16
#define s1 $17
#define s2 $18
#define s3 $19
#define sp $29
#define fp $30
#define ra $31

	.set noreorder

	.section .text.start, "ax"
	.globl _start
_start: /* a0 = program, a1 = argument */
	addiu sp, sp, -32
	jal user_main
	nop
	move a0, v0
	li v0, SYS_EXIT
	syscall
	break

	.text
	/* word call_kernel(word number, word a, word b, word c, word d, word e) */
	.globl call_kernel
call_kernel:
	move v0, a0
	move a0, a1
	move a1, a2
	move a2, a3
	lw a3, 16(sp)
	lw t0, 20(sp)
	syscall
	jr ra
	nop

	/* word return_address(word number, word what, word *at) */
	.globl return_address
return_address:
	move v0, a0
	move a0, a1
	la t0, 1f
	sw t0, 0(a2)
	syscall
1:	jr ra
	nop

	.macro saved operation
	.irp n, 16, 17, 18, 19, 20, 21, 22, 23
	\operation $\n, 4 * (\n - 12)(sp)
	.endr
	\operation fp, 48(sp)
	\operation ra, 52(sp)
	.endm

	/* bool catch_fault(void (*run)(word), word argument, struct fault *fault) */
	.globl catch_fault
catch_fault:
	addiu sp, sp, -64
	saved sw
	sw a2, 56(sp)
	move s0, a0
	move s1, a1
	la a0, 1f
	move a1, sp
	li v0, SYS_CATCH
	syscall
	jalr s0
	move a0, s1
	move a0, zero
	li v0, SYS_CATCH
	syscall
	b 2f
	move v0, zero
1:	lw t0, 56(sp)
	sw a0, 0(t0)
	sw a1, 4(t0)
	sw a2, 8(t0)
	sw a3, 12(t0)
	li v0, 1
2:	saved lw
	jr ra
	addiu sp, sp, 64

	.macro faulting name, code:vararg
	.globl \name
\name:
	\code
	jr ra
	nop
	.endm
	faulting do_read_status, mfc0 v0, $12
	faulting do_write_status, mtc0 zero, $12
	faulting do_read_count, mfc0 v0, $9
	faulting do_read_prid, mfc0 v0, $15
	faulting do_write_compare, mtc0 zero, $11
	faulting do_di, di
	faulting do_ei, ei
	faulting do_tlbr, tlbr
	faulting do_tlbwi, tlbwi
	faulting do_tlbwr, tlbwr
	faulting do_tlbp, tlbp
	faulting do_eret, eret
	faulting do_wait, wait
	faulting do_cache, cache 0, 0(a0)
	faulting do_rdpgpr, rdpgpr v0, a0
	faulting do_wrpgpr, wrpgpr v0, a0
	faulting do_undefined, .word 0x0000002d /* an instruction of MIPS64 */
	faulting do_breakpoint, break
	faulting do_read, lw v0, 0(a0)
	faulting do_write, sw v0, 0(a0)

	.globl do_jump, thread_word, sync_code, code_return, code_set_value
do_jump:
	jr a0
	nop
thread_word:
	rdhwr $3, $29
	jr ra
	lw v0, 0(v1)
sync_code: /* SYNCI every line, and a hazard barrier */
	rdhwr $8, $1
	addu a1, a0, a1
1:	synci 0(a0)
	addu a0, a0, t0
	sltu t1, a0, a1
	bnez t1, 1b
	nop
	sync
	jr.hb ra
	nop
code_return: /* lui v0, value >> 16; ori v0, v0, value; jr ra; nop */
	li t0, 0x03e00008
	sw t0, 8(a0)
	sw zero, 12(a0)
code_set_value:
	srl t0, a1, 16
	lui t1, 0x3c02
	or t0, t0, t1
	sw t0, 0(a0)
	andi t0, a1, 0xffff
	lui t1, 0x3442
	or t0, t0, t1
	sw t0, 4(a0)
	jr ra
	li v0, 16

	/* word hold_registers(word pattern, word rounds, word yields): fills all floating-point registers from
	 * the pattern and compares them in every round, with or without a system call in between. */
	.set hardfloat
	.macro for_floats operation
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	\operation \n
	.endr
	.endm
	.macro fill n
	addiu t0, s0, \n
	mtc1 t0, $f\n
	.endm
	.macro compare n
	mfc1 t0, $f\n
	addiu t1, s0, \n
	xor t0, t0, t1
	or t2, t2, t0
	.endm
	.globl hold_registers
hold_registers:
	addiu sp, sp, -64
	saved sw
	move s0, a0
	move s1, a1
	move s2, a2
	move s3, zero
	for_floats fill
1:	beqz s2, 2f
	nop
	li v0, SYS_YIELD
	syscall
2:	li t0, 300 /* time for the timer */
3:	bnez t0, 3b
	addiu t0, t0, -1
	move t2, zero
	for_floats compare
	sltu t2, zero, t2
	addu s3, s3, t2
	addiu s1, s1, -1
	bnez s1, 1b
	nop
	move v0, s3
	saved lw
	jr ra
	addiu sp, sp, 64
