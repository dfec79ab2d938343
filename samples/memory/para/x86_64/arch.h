/* x86-64 as the memory workload's para-virtual port has it. */
#ifndef ARCH_H
#define ARCH_H

#define KERNEL_BASE 0xffffffff80000000
#define DIRECT_MAP 0xffff888000000000
#define SCRATCH_AREA 0xffffc90000000000
#define POOL_START 0x1400000

#define PTE_P 0x001
#define PTE_W 0x002
#define PTE_U 0x004
#define PTE_A 0x020
#define PTE_D 0x040
#define PTE_NX 0x8000000000000000
#define PTE_ADDRESS 0x000ffffffffff000

#define FRAME_BYTES 176
#define FPU_BYTES 512
#define NO_EXECUTE 1
#define LAZY_FPU 1
#define PRIVILEGED_KIND FAULT_PRIVILEGED
#define BREAKPOINT_KIND FAULT_BREAKPOINT
#define VOLATILE_SECTION ".volatile,\"aw\",@nobits#"

/* What arch.c does with entries. */
#define PRESENT PTE_P
#define CLOSED(entry) ((entry) & ~(word)PTE_W)
#define OPEN(entry) ((entry) | PTE_W)
#define LEAF(page, rights) ((page) | PTE_P | ((rights) & RIGHT_WRITE ? PTE_W : 0) | \
	((rights) & RIGHT_EXECUTE ? 0 : PTE_NX) | ((rights) & RIGHT_USER ? PTE_U : 0))
#define TABLE_ENTRY(page, process) ((page) | PTE_P | PTE_W | PTE_A | ((process) ? PTE_U : 0))
#define OURS 0x104ul /* the user and global bits, which are the hypervisor's in a table in use */
#define KEPT 50      /* where ours are kept, so many bits higher */
#define OWN_BITS(entry) (((entry) & ~(PTE_ADDRESS | OURS | OURS << KEPT)) | ((entry) >> KEPT & OURS))
#define KERNEL_ROOT kernel_pml4
#define PROCESS_SLOTS 256 /* of a root; what lies behind is the kernel's, but for the hypervisor's */
#define SHARED_SLOT(i) ((i) >= 256 && !((i) >= 256 && (i) < 272))
#define PAGE_NUMBER(page) ((page) / PAGE)
#define PHYSICAL(symbol) ((word)(symbol) - KERNEL_BASE)

#ifndef __ASSEMBLER__
#define DIRECT(physical) ((void *)(DIRECT_MAP + (physical)))
#endif
#endif
