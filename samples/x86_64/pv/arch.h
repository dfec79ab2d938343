/* x86-64, para-virtual: retrap's calls in the place of the privileged architecture. */
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
#define PTE_LARGE 0x080
#define PTE_NX 0x8000000000000000
#define PTE_ADDRESS 0x000ffffffffff000

#define FRAME_BYTES 176
#define FPU_BYTES 512
#define NO_EXECUTE 1
#define LAZY_FPU 1
#define PRIVILEGED_KIND FAULT_PRIVILEGED
#define BREAKPOINT_KIND FAULT_BREAKPOINT
#define VOLATILE_SECTION ".volatile,\"aw\",@nobits#"

#define PV_STACK rsp
#define PV_NUMBER rax
#define PV_RESULT rax
#define PV_FIRST rdi
#define PV_SECOND rsi
#define PV_THIRD rdx
#define PV_FOURTH r8
#define PV_PC(frame) ((frame)->r.pc)
#define HANDLER

#ifndef __ASSEMBLER__
#define DIRECT(physical) ((void *)(DIRECT_MAP + (physical)))
#endif
#endif
