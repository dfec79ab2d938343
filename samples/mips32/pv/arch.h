/* MIPS32 Release 2, para-virtual: retrap's calls in the place of the privileged architecture, and page tables in the
 * place of the TLB. */
#ifndef ARCH_H
#define ARCH_H

#define KSEG0 0x80000000
#define SCRATCH_AREA 0xc0000000 /* KSEG2 */
#define POOL_START 0x1400000
#define TABLE_ENTRIES 1024

#define FRAME_BYTES 160 /* 156, on a boundary of 16 */
#define FPU_BYTES 144
#define NO_EXECUTE 0
#define LAZY_FPU 1
#define PRIVILEGED_KIND FAULT_PRIVILEGED
#define BREAKPOINT_KIND FAULT_BREAKPOINT
#define VOLATILE_SECTION ".volatile,\"aw\",@nobits#"

#define PV_STACK r29
#define PV_NUMBER r2
#define PV_RESULT r2
#define PV_FIRST r4
#define PV_SECOND r5
#define PV_THIRD r6
#define PV_FOURTH r7
#define PV_PC(frame) ((frame)->r.pc + ((frame)->r.flags >> 31 ? 4 : 0))
#define HANDLER

#ifndef __ASSEMBLER__
#define DIRECT(physical) ((void *)(KSEG0 + (physical)))
#endif
#endif
