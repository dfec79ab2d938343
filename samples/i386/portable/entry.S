/* Entries and exits: the 32-bit Linux boot entry, the PVH entry, the first page tables, the exception
 * stubs, SYSENTER and INT 0x80, and the ways back. No segment register is loaded on the boot path, so
 * that the first checks run, and report, even where segments are not virtualised. */
#include "arch.h"
#include "layout.h"

#define PHYS(symbol) ((symbol) - KERNEL_BASE)

	.section .head.text, "ax"
	.globl startup_32
	.type startup_32, @function
startup_32: /* paging off, interrupts off, ESI = physical address of boot_params */
	cli
	cld
	movl $PHYS(kernel_pdpt), %eax
	movl %eax, %cr3
	movl $0x20, %eax /* PAE */
	movl %eax, %cr4
	movl $MSR_EFER, %ecx
	rdmsr
	orl $0x800, %eax /* NXE */
	wrmsr
	movl %cr0, %eax
	orl $0x80000000, %eax
	movl %eax, %cr0
	movl $high, %eax
	jmp *%eax
high:
	movl $boot_stack_top, %esp
	xorl %ebp, %ebp
	pushl %esi
	call kernel_main
0:	cli
	hlt
	jmp 0b
	.size startup_32, . - startup_32

	/* PVH: paging off, EBX = physical address of hvm_start_info. */
	.globl startup_pvh
	.type startup_pvh, @function
startup_pvh:
	cli
	cld
	movl 24(%ebx), %eax /* cmdline_paddr */
	movl $PHYS(pvh_boot_params), %esi
	movl %eax, 0x228(%esi)
	lgdt PHYS(pvh_gdt_register)
	ljmp $KERNEL_CS, $PHYS(1f)
1:	movl $KERNEL_DS, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	jmp startup_32
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
	.long PHYS(gdt)

	.bss
	.balign 16
	.local pvh_boot_params
	.comm pvh_boot_params, 4096, 16

	/* Accessed and dirty are set from the start, so that they never change. */
#define DIRECTORY (PTE_P | PTE_W | PTE_A)
#define LEAF (PTE_P | PTE_W | PTE_A | PTE_D)
	.macro leaf physical, more=0
	.long \physical + LEAF + \more
	.long 0
	.endm
	.section .data.page_tables, "aw"
	.balign 4096
	.globl kernel_pdpt, identity_pd, kernel_pd, image_pt
kernel_pdpt:
	.long PHYS(identity_pd) + PTE_P, 0
	.long 0, 0, 0, 0
	.long PHYS(kernel_pd) + PTE_P, 0
	.fill 508, 8, 0
identity_pd: /* the loader's view, dropped by arch_start */
	.set i, 0
	.rept 512
	leaf i, PTE_LARGE
	.set i, i + 0x200000
	.endr
kernel_pd: /* from 0xc0000000 on: the image at 0xc1000000, 64 MiB of physical memory at DIRECT_MAP */
	.fill 8, 8, 0
	.long PHYS(image_pt) + DIRECTORY, 0
	.fill 119, 8, 0
	.set i, 0
	.rept 32
	.long i + LEAF + PTE_LARGE, 0x80000000 /* not executable */
	.set i, i + 0x200000
	.endr
	.fill 352, 8, 0
image_pt: /* rights by section are set in arch_start */
	.set i, 0x1000000
	.rept 512
	leaf i
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
	pushl $0
	.endif
	pushl $i
	jmp trap_entry
	.set i, i + 1
	.endr
	.size vector_stubs, . - vector_stubs

	.macro save
	pushl %ds
	pushl %es
	pushal
	movl $KERNEL_DS, %eax
	movl %eax, %ds
	movl %eax, %es
	cld
	.endm

	.type trap_entry, @function
trap_entry:
	save
	pushl %esp
	call arch_trap
	addl $4, %esp
	.globl trap_return
trap_return: /* ESP = struct frame */
	popal
	popl %es
	popl %ds
	addl $8, %esp
	iretl
	.size trap_entry, . - trap_entry

	.globl call_entry
	.type call_entry, @function
call_entry: /* INT 0x80 */
	pushl $0
	pushl $0x80
	save
	pushl %esp
	call system_call
	addl $4, %esp
	jmp trap_return
	.size call_entry, . - call_entry

	/* SYSENTER: ESP points to the word that holds the kernel's stack, ECX is the user's stack pointer and
	 * EDX where it goes on. */
	.globl sysenter_entry
	.type sysenter_entry, @function
sysenter_entry:
	movl (%esp), %esp
	pushl $USER_DS
	pushl %ecx
	pushfl
	orl $FLAG_IF, (%esp)
	pushl $USER_CS
	pushl %edx
	pushl $0
	pushl $0x100
	save
	pushl %esp
	call system_call
	addl $4, %esp
	popal
	popl %es
	popl %ds
	addl $8, %esp
	movl (%esp), %edx
	movl 12(%esp), %ecx
	addl $8, %esp
	andl $~FLAG_IF, (%esp)
	popfl
	sti
	sysexit
	.size sysenter_entry, . - sysenter_entry

#include "contexts.S"

	.bss
	.balign 8
	.globl catch_stack
catch_stack:
	.skip 4

#include "user_image.S"
