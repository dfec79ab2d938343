/* AArch64, para-virtual: retrap's calls in the place of the privileged architecture. The lower half of addresses is
 * for processes, the upper the kernel's, each with a root. */
#ifndef ARCH_H
#define ARCH_H

#define PHYSICAL_BASE 0x40000000
#define KERNEL_BASE 0xffff800008000000
#define SCRATCH_AREA 0xffff800020000000
#define POOL_START 0x40800000

#define PTE_TABLE 3
#define PTE_BLOCK 0x701 /* accessed, inner shareable, attribute 0: normal memory */
#define PTE_PAGE 0x703
#define PTE_USER 0x40
#define PTE_READ_ONLY 0x80
#define PTE_NOT_GLOBAL 0x800
#define PTE_PXN 0x0020000000000000
#define PTE_UXN 0x0040000000000000
#define PTE_ADDRESS 0x0000fffffffff000
#define DIRECT_PAGES (0x4000000 / 0x1000)

#define FRAME_BYTES 304
#define FPU_BYTES 528
#define NO_EXECUTE 1
#define LAZY_FPU 1
#define PRIVILEGED_KIND FAULT_UNDEFINED
#define BREAKPOINT_KIND FAULT_BREAKPOINT
#define VOLATILE_SECTION ".volatile,\"aw\",%nobits//"

#define PV_STACK sp
#define PV_NUMBER x8
#define PV_RESULT x0
#define PV_FIRST x0
#define PV_SECOND x1
#define PV_THIRD x2
#define PV_FOURTH x3
#define PV_PC(frame) ((frame)->r.pc)
#define HANDLER

#ifndef __ASSEMBLER__
#define DIRECT(physical) ((void *)((physical) - PHYSICAL_BASE + KERNEL_BASE))
#endif
#endif
