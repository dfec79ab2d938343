/* AArch64 under the portable sample: for the `virt` board, entered with the MMU off at EL1, by Linux's boot protocol or
 * as a bare ELF. TTBR0 has the lower half, for processes; TTBR1 the kernel's. 4 KiB pages, 48-bit addresses. */
#ifndef ARCH_H
#define ARCH_H

#define PHYSICAL_BASE 0x40000000
#define KERNEL_BASE 0xffff800008000000
#define IMAGE_BASE 0xffff800008100000
#define SCRATCH_AREA 0xffff800020000000
#define DEVICES 0xffff800010000000 /* GIC; the next 2 MiB are the serial port's */
#define POOL_START 0x40800000

#define PTE_TABLE 3
#define PTE_BLOCK 0x701 /* accessed, inner shareable, attribute 0: normal memory */
#define PTE_PAGE 0x703
#define PTE_DEVICE 4 /* attribute 1 */
#define PTE_USER 0x40
#define PTE_READ_ONLY 0x80
#define PTE_NOT_GLOBAL 0x800
#define PTE_PXN 0x0020000000000000
#define PTE_UXN 0x0040000000000000
#define PTE_ADDRESS 0x0000fffffffff000

#define TCR_VALUE 0x1b5103510 /* 48 bits twice, 4 KiB, write-back, inner shareable, 36-bit physical addresses */
#define MAIR_VALUE 0x00ff
#define SCTLR_VALUE 0x34d5d81d /* UCI, nTWE, nTWI, UCT, DZE, I, SA0, SA, C, M and what is one */

#define MODE_EL1 5
#define DAIF_I 0x80

#define KIND_SYNCHRONOUS 0
#define KIND_INTERRUPT 1

#define FRAME_BYTES 288
#define FPU_BYTES 528
#define NO_EXECUTE 1
#define LAZY_FPU 0 /* the architecture could; not every emulator does */
#define PRIVILEGED_KIND FAULT_UNDEFINED
#define BREAKPOINT_KIND FAULT_BREAKPOINT
#define VOLATILE_SECTION ".volatile,\"aw\",%nobits//"

#ifndef __ASSEMBLER__
#define DIRECT(physical) ((void *)((physical) - PHYSICAL_BASE + KERNEL_BASE))
#endif
#endif
