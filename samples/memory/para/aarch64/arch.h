/* AArch64 as the memory workload's para-virtual port has it: the lower half of addresses is for processes, with a root
 * of its own. */
#ifndef ARCH_H
#define ARCH_H

#define PHYSICAL_BASE 0x40000000
#define KERNEL_BASE 0xffff800008000000
#define SCRATCH_AREA 0xffff800020000000
#define POOL_START 0x40800000
#define DIRECT_PAGES (0x4000000 / 0x1000)

#define PTE_P 1
#define PTE_TABLE 3
#define PTE_PAGE 0x703 /* accessed, inner shareable, attribute 0: normal memory */
#define PTE_USER 0x40
#define PTE_READ_ONLY 0x80
#define PTE_NOT_GLOBAL 0x800
#define PTE_PXN 0x0020000000000000
#define PTE_UXN 0x0040000000000000
#define PTE_ADDRESS 0x0000fffffffff000

#define FRAME_BYTES 304
#define FPU_BYTES 528
#define NO_EXECUTE 1
#define LAZY_FPU 1
#define PRIVILEGED_KIND FAULT_UNDEFINED
#define BREAKPOINT_KIND FAULT_BREAKPOINT
#define VOLATILE_SECTION ".volatile,\"aw\",%nobits//"

/* What arch.c does with entries. */
#define PRESENT PTE_P
#define CLOSED(entry) ((entry) | PTE_READ_ONLY)
#define OPEN(entry) ((entry) & ~(word)PTE_READ_ONLY)
#define LEAF(page, rights) ((page) | PTE_PAGE | PTE_NOT_GLOBAL | ((rights) & RIGHT_WRITE ? 0 : PTE_READ_ONLY) | \
	((rights) & RIGHT_USER ? PTE_USER : 0) | \
	((rights) & RIGHT_EXECUTE ? (rights) & RIGHT_USER ? PTE_PXN : PTE_UXN : PTE_PXN | PTE_UXN))
#define TABLE_ENTRY(page, process) ((void)(process), (page) | PTE_TABLE)
#define KEPT 49            /* our user bit is so many bits higher: every page is open to EL0, which our kernel runs at */
#define OPENED (1ul << 56) /* and what the kernel may execute EL0 may: this says that UXN was ours */
#define OWN_BITS(entry) ((((entry) & OPENED ? (entry) ^ (OPENED | PTE_UXN) : (entry)) & \
	~(PTE_ADDRESS | PTE_USER | (word)PTE_USER << KEPT)) | ((entry) >> KEPT & PTE_USER))
#define KERNEL_ROOT empty_table
#define PROCESS_SLOTS 448 /* of a root; behind it are the hypervisor's */
#define SHARED_SLOT(i) false
#define PAGE_NUMBER(page) (((page) - PHYSICAL_BASE) / PAGE)
#define PHYSICAL(symbol) ((word)(symbol) - KERNEL_BASE + PHYSICAL_BASE)

#ifndef __ASSEMBLER__
#define DIRECT(physical) ((void *)((physical) - PHYSICAL_BASE + KERNEL_BASE))
#endif
#endif
