/* MIPS32 Release 2 under the portable sample: linked into KSEG0 like a Linux vmlinux, entered as YAMON
 * enters a kernel. The page tables are the sample's own, walked by its TLB refill handler. */
#ifndef ARCH_H
#define ARCH_H

#define KSEG0 0x80000000
#define KSEG1 0xa0000000
#define SCRATCH_AREA 0xc0000000 /* KSEG2 */
#define POOL_START 0x1400000
#define TABLE_ENTRIES 1024

#define STATUS_IE 0x1
#define STATUS_EXL 0x2
#define STATUS_UM 0x10
#define STATUS_IM 0x400 /* line 2: the interrupt controllers */
#define STATUS_CU1 0x20000000
#define CAUSE_BD 0x80000000

/* Words of a frame. */
#define F_HI 32
#define F_LO 33
#define F_STATUS 34
#define F_CAUSE 35
#define F_EPC 36
#define F_BADVADDR 37
#define FRAME_BYTES 152
#define FPU_BYTES 144
#define NO_EXECUTE 0
#define LAZY_FPU 1
#define PRIVILEGED_KIND FAULT_PRIVILEGED
#define BREAKPOINT_KIND FAULT_BREAKPOINT
#define VOLATILE_SECTION ".volatile,\"aw\",@nobits#"

#ifndef __ASSEMBLER__
#define DIRECT(physical) ((void *)(KSEG0 + (physical)))
#endif
#endif
