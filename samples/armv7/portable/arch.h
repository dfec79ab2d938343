/* ARMv7-A under the portable sample: for the `virt` board, entered with the MMU off in Supervisor mode, by
 * Linux's boot protocol or as a bare ELF. TTBR0 has the lower 2 GiB, for processes; TTBR1 the kernel's. */
#ifndef ARCH_H
#define ARCH_H

#define PHYSICAL_BASE 0x40000000
#define KERNEL_BASE 0xc0000000
#define IMAGE_BASE 0xc0100000
#define SCRATCH_AREA 0xd0000000
#define DEVICES 0xe0000000 /* GIC; the next megabyte is the serial port's */
#define POOL_START 0x40800000

#define MODE_USR 0x10
#define MODE_IRQ 0x12
#define MODE_SVC 0x13
#define MODE_SYS 0x1f
#define CPSR_T 0x20
#define CPSR_I 0x80

#define SCTLR_SET 0x1805 /* I, Z, C, M */

#define ENTRY_UNDEFINED 1
#define ENTRY_SVC 2
#define ENTRY_PREFETCH 3
#define ENTRY_DATA 4
#define ENTRY_IRQ 6

#define SYS_SYNC 0x100 /* address, bytes: cache maintenance is the kernel's */

#define FRAME_BYTES 80
#define FPU_BYTES 264
#define NO_EXECUTE 1
#define LAZY_FPU 1
#define PRIVILEGED_KIND FAULT_UNDEFINED
#define BREAKPOINT_KIND FAULT_BREAKPOINT
#define VOLATILE_SECTION ".volatile,\"aw\",%nobits@"

#ifndef __ASSEMBLER__
#define DIRECT(physical) ((void *)((physical) - PHYSICAL_BASE + KERNEL_BASE))
#endif
#endif
