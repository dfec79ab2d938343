/* ARMv7-A, para-virtual: retrap's calls in the place of the privileged architecture. The lower 2 GiB are for processes,
 * the upper the kernel's, each with a root. */
#ifndef ARCH_H
#define ARCH_H

#define PHYSICAL_BASE 0x40000000
#define KERNEL_BASE 0xc0000000
#define IMAGE_BASE 0xc0100000
#define SCRATCH_AREA 0xd0000000
#define POOL_START 0x40800000

#define SYS_SYNC 0x100 /* address, bytes: cache maintenance is the kernel's */

#define FRAME_BYTES 96 /* 84, on a boundary of 16 */
#define FPU_BYTES 264
#define NO_EXECUTE 1
#define LAZY_FPU 1
#define PRIVILEGED_KIND FAULT_UNDEFINED
#define BREAKPOINT_KIND FAULT_BREAKPOINT
#define VOLATILE_SECTION ".volatile,\"aw\",%nobits@"

#define PV_STACK r13
#define PV_NUMBER r7
#define PV_RESULT r0
#define PV_FIRST r0
#define PV_SECOND r1
#define PV_THIRD r2
#define PV_FOURTH r3
#define PV_PC(frame) ((frame)->r.pc)
#define HANDLER

#ifndef __ASSEMBLER__
#define DIRECT(physical) ((void *)((physical) - PHYSICAL_BASE + KERNEL_BASE))
#endif
#endif
