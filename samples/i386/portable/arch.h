/* i386 under the portable sample: PAE paging, linked like a Linux vmlinux, entered by its 32-bit boot
 * protocol (or by PVH on the reference machine). */
#ifndef ARCH_H
#define ARCH_H

#define KERNEL_BASE 0xc0000000
#define DIRECT_MAP 0xd0000000
#define SCRATCH_AREA 0xe0000000
#define POOL_START 0x1400000

#define KERNEL_CS 0x10 /* as the Linux boot protocol has it, and SYSENTER wants it */
#define KERNEL_DS 0x18
#define USER_CS 0x23
#define USER_DS 0x2b
#define TSS_SELECTOR 0x30
#define THREAD_SELECTOR 0x3b
#define GDT_BYTES 0x40

#define PTE_P 0x001
#define PTE_W 0x002
#define PTE_U 0x004
#define PTE_A 0x020
#define PTE_D 0x040
#define PTE_LARGE 0x080
#define PTE_NX 0x8000000000000000
#define PTE_ADDRESS 0x0000000ffffff000

#define FLAG_IF 0x200
#define CR0_VALUE 0x80050033 /* PG AM WP NE ET MP PE */
#define CR0_TS 0x8
#define CR4_VALUE 0x620 /* OSXMMEXCPT OSFXSR PAE */
#define MSR_EFER 0xc0000080

#define FRAME_BYTES 68
#define FPU_BYTES 512
#define NO_EXECUTE 1
#define LAZY_FPU 1
#define PRIVILEGED_KIND FAULT_PRIVILEGED
#define BREAKPOINT_KIND FAULT_BREAKPOINT
#define VOLATILE_SECTION ".volatile,\"aw\",@nobits#"

#ifndef __ASSEMBLER__
#define DIRECT(physical) ((void *)(DIRECT_MAP + (physical)))
#endif
#endif
