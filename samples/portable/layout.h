/* Numbers that the kernel, its assembler parts and the user programs share. */
#ifndef LAYOUT_H
#define LAYOUT_H

#define PAGE 4096
#define POOL_PAGES 1024

/* System calls. */
#define SYS_EXIT 0
#define SYS_REPORT 1  /* name, ok, what, got, wanted: prints a check's line */
#define SYS_YIELD 2
#define SYS_FORK 3    /* the child's slot; 0 in the child */
#define SYS_WAIT 4    /* slot: its exit code */
#define SYS_MAP 5     /* address, rights: a new page */
#define SYS_PROTECT 6 /* address, rights */
#define SYS_ALIAS 7   /* new address, address, rights: the same page again */
#define SYS_UNMAP 8
#define SYS_CATCH 9   /* PC, stack: where the next fault goes on */
#define SYS_QUERY 10  /* QUERY_...: a number the kernel knows */
#define SYS_SET_THREAD 11
#define SYS_ECHO 12   /* x, y: 3x + y */
#define SYS_STORE 13  /* address, value: the kernel stores for the caller */
#define SYS_SHARE 14  /* address, rights, number: maps one of the pages that all processes share */

#define QUERY_DEMAND 0
#define QUERY_COPIES 1
#define QUERY_REUSES 2
#define QUERY_RETURN_PC 3  /* where this call returns to, as the kernel has it */
#define QUERY_KERNEL_PAGE 4 /* an address of the kernel's memory */
#define QUERY_THREAD 5
#define QUERY_ROUNDS 6       /* how often a form of self-modifying code is tried */

#define RIGHT_WRITE 1
#define RIGHT_EXECUTE 2
#define RIGHT_USER 4

#define FAULT_ABSENT 1
#define FAULT_PROTECTION 2
#define FAULT_UNDEFINED 3
#define FAULT_PRIVILEGED 4
#define FAULT_BREAKPOINT 5
#define FAULT_FLOATING_POINT 6
#define FAULT_OTHER 7

#define ACCESS_READ 0
#define ACCESS_WRITE 1
#define ACCESS_EXECUTE 2

#define USER_CODE 0x400000
#define HEAP 0x10000000 /* filled on demand */
#define HEAP_BYTES 0x100000
#define SHARED 0x30000000
#define SHARED_PAGES 2
#define STACK_BOTTOM 0x7ffe0000 /* filled on demand */
#define STACK_TOP 0x7ffef000

#define PROGRAM_FAULTS 0
#define PROGRAM_PREEMPTION 1
#define PROGRAM_FLOATING_POINT 2
#define PROGRAM_FORK 3
#define PROGRAM_CODE 4
#define PROGRAM_CODE_WRITER 5
#define PROGRAM_CODE_RUNNER 6

#define PHASES 6
#define STEPS 300
#define ROUNDS 10000 /* of each form of self-modifying code; rounds=N on the command line asks for fewer */

#endif
