/* The sample's system calls: number in RAX, arguments in RDI RSI RDX R10 R8, result in RAX; by
 * SYSCALL (RCX and R11 are lost) or by INT 0x80. Kernel and user programs both include this. */
#define SYS_EXIT 0
#define SYS_REPORT 1    /* name, ok, what, got, wanted: prints a check's line */
#define SYS_YIELD 2
#define SYS_FORK 3      /* the child's slot; 0 in the child */
#define SYS_WAIT 4      /* slot: its exit code */
#define SYS_MAP 5       /* address, rights: a new page */
#define SYS_PROTECT 6   /* address, rights */
#define SYS_ALIAS 7     /* new address, address, rights: the same page again */
#define SYS_UNMAP 8
#define SYS_CATCH 9     /* RIP, RSP: where the next fault goes on */
#define SYS_QUERY 10    /* QUERY_...: a number the kernel knows */
#define SYS_SET_FS 11
#define SYS_ECHO 12     /* x, y: 3x + y */
#define SYS_IO_MAP 13   /* 0: no ports; 1: port 0x3ff only */
#define SYS_STORE 14    /* address, value: the kernel stores for the caller */
#define SYS_TIME_STAMP_DISABLE 15
#define SYS_SET_IOPL 16
#define SYS_CALLER_CS 17
#define SYS_SHARE 18    /* maps the page all processes share at SHARED */
#define SYS_PORT_READ 19 /* what port 0x3ff holds, read by the kernel */

#define QUERY_DEMAND 0
#define QUERY_COPIES 1
#define QUERY_REUSES 2
#define QUERY_GDT 3
#define QUERY_IDT 4
#define QUERY_CR0 5
#define QUERY_ENTRY_FLAGS 6 /* RFLAGS inside the kernel */
#define QUERY_RETURN_RIP 7  /* RIP and RFLAGS of the caller, as the kernel has them */
#define QUERY_RETURN_FLAGS 8
#define QUERY_ROUNDS 9 /* how often a form of self-modifying code is tried */

#define RIGHT_WRITE 1
#define RIGHT_EXECUTE 2

#define USER_CODE 0x400000
#define HEAP 0x10000000 /* filled on demand */
#define HEAP_BYTES 0x100000
#define SHARED 0x30000000
#define STACK_BOTTOM 0x7fff0000 /* filled on demand */
#define STACK_TOP 0x7ffff000

#define PROGRAM_FAULTS 0
#define PROGRAM_PREEMPTION 1
#define PROGRAM_FLOATING_POINT 2
#define PROGRAM_FORK 3
#define PROGRAM_SELF_MODIFYING 4
#define PROGRAM_COMPATIBILITY 5

#define PHASES 6
#define STEPS 300
