/* i386, para-virtual: retrap's calls in the place of the privileged architecture. PAE paging. */
#ifndef ARCH_H
#define ARCH_H

#define KERNEL_BASE 0xc0000000
#define DIRECT_MAP 0xd0000000
#define SCRATCH_AREA 0xe0000000
#define POOL_START 0x1400000

#define PTE_P 0x001
#define PTE_W 0x002
#define PTE_U 0x004
#define PTE_A 0x020
#define PTE_D 0x040
#define PTE_LARGE 0x080
#define PTE_NX 0x8000000000000000
#define PTE_ADDRESS 0x000ffffffffff000

#define FRAME_BYTES 64 /* 56, on a boundary of 16 */
#define FPU_BYTES 512
#define NO_EXECUTE 1
#define LAZY_FPU 1
#define PRIVILEGED_KIND FAULT_PRIVILEGED
#define BREAKPOINT_KIND FAULT_BREAKPOINT
#define VOLATILE_SECTION ".volatile,\"aw\",@nobits#"

#define PV_STACK esp
#define PV_NUMBER eax
#define PV_RESULT eax
#define PV_FIRST edi
#define PV_SECOND esi
#define PV_THIRD edx
#define PV_FOURTH ebx
#define PV_PC(frame) ((frame)->r.pc)
#define HANDLER __attribute__((regparm(1)))

#ifndef __ASSEMBLER__
#define DIRECT(physical) ((void *)(DIRECT_MAP + (physical)))
#endif
#endif
