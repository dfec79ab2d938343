/* Entries and exits: the 64-bit Linux boot entry, the PVH entry, the first page tables, the exception
 * stubs, SYSCALL and the way back. No segment register is loaded on the boot path, so that the first
 * checks run, and report, even where far transfers are not virtualised. */
#include "arch.h"
#include "layout.h"

#define PHYS(symbol) ((symbol) - KERNEL_BASE)

	.section .head.text, "ax"
	.globl startup_64
	.type startup_64, @function
startup_64: /* identity-mapped, interrupts off, RSI = physical address of boot_params */
	cli
	cld
	movl $MSR_EFER, %ecx
	rdmsr
	orl $0x901, %eax /* NXE, LME, SCE */
	wrmsr
	leaq kernel_pml4(%rip), %rax
	movq %rax, %cr3
	movq $high, %rax
	jmp *%rax
high:
	movq $boot_stack_top, %rsp
	xorl %ebp, %ebp
	movq %rsi, %rdi
	call kernel_main
0:	cli
	hlt
	jmp 0b
	.size startup_64, . - startup_64

	/* PVH: 32-bit, paging off, EBX = physical address of hvm_start_info. */
	.code32
	.globl startup_pvh
	.type startup_pvh, @function
startup_pvh:
	cli
	cld
	movl 24(%ebx), %eax /* cmdline_paddr */
	movl $PHYS(pvh_boot_params), %esi
	movl %eax, 0x228(%esi)
	movl $PHYS(kernel_pml4), %eax
	movl %eax, %cr3
	movl $0x20, %eax
	movl %eax, %cr4
	movl $MSR_EFER, %ecx
	rdmsr
	orl $0x900, %eax
	wrmsr
	lgdt PHYS(pvh_gdt_register)
	movl $0x80000011, %eax
	movl %eax, %cr0
	ljmp $KERNEL_CS, $PHYS(pvh_64)
	.code64
pvh_64:
	movl $KERNEL_DS, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	movl $PHYS(pvh_boot_params), %esi
	jmp startup_64
	.size startup_pvh, . - startup_pvh

	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 4, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long PHYS(startup_pvh)

	.section .rodata
	.balign 8
pvh_gdt_register:
	.word GDT_BYTES - 1
	.quad PHYS(gdt)

	.bss
	.balign 16
	.local pvh_boot_params
	.comm pvh_boot_params, 4096, 16

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

	/* One stub a vector, 16 bytes each. */
	.text
	.balign 16
	.globl vector_stubs
	.type vector_stubs, @function
vector_stubs:
	.set i, 0
	.rept 49
	.balign 16
	.if i != 8 && i != 10 && i != 11 && i != 12 && i != 13 && i != 14 && i != 17
	pushq $0
	.endif
	pushq $i
	jmp trap_entry
	.set i, i + 1
	.endr
	.size vector_stubs, . - vector_stubs

	.macro for_registers operation, registers:vararg
	.irp register, \registers
	\operation %\register
	.endr
	.endm

	.type trap_entry, @function
trap_entry:
	cld
	for_registers pushq, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
	testb $3, 144(%rsp) /* the frame's CS */
	jz 1f
	swapgs
1:	movq %rsp, %rdi
	call arch_trap
	.globl trap_return
trap_return: /* RSP = struct frame */
	testb $3, 144(%rsp)
	jz 1f
	swapgs
1:	for_registers popq, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax
	addq $16, %rsp
	iretq
	.size trap_entry, . - trap_entry

	.globl syscall_entry
	.type syscall_entry, @function
syscall_entry:
	swapgs
	movq %rsp, %gs:8
	movq %gs:0, %rsp
	pushq $USER_DS
	pushq %gs:8
	pushq %r11
	pushq $USER_CS
	pushq %rcx
	pushq $0
	pushq $0x100 /* no vector: SYSCALL */
	for_registers pushq, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
	movq %rsp, %rdi
	call system_call
	for_registers popq, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax
	movq 16(%rsp), %rcx
	movq 32(%rsp), %r11
	movq 40(%rsp), %rsp
	swapgs
	sysretq
	.size syscall_entry, . - syscall_entry

#include "contexts.S"

	.bss
	.balign 8
	.globl catch_stack
catch_stack:
	.skip 8

#include "user_image.S"
