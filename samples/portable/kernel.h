/* The portable sample kernel: what every file shares, and (below) what an architecture must offer.
 *
 * The same program runs on every instruction set and prints the same lines. `word` is as wide as an
 * address. Everything whose bytes depend on interrupt timing is VOLATILE_DATA and lies between
 * __volatile_start and __volatile_end. An architecture lives in samples/<isa>/portable: arch.h (types
 * and constants for C and assembler), arch.c, entry.S, user.S, portable.ld, flags.mk. */
#ifndef KERNEL_H
#define KERNEL_H

#include "arch.h"
#include "layout.h"

#ifndef __ASSEMBLER__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long word;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)
#define VOLATILE_DATA __attribute__((section(VOLATILE_SECTION)))
#define NOINLINE __attribute__((noinline, noclone))
#define NORETURN __attribute__((noreturn))
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* ---- console.c: a tiny printf ---- */
void print(const char *format, ...); /* %s %d %x, numbers are words */

/* ---- check.c: named checks, one line each: "ok NAME" or "FAIL NAME: ..." ---- */
struct check {
	const char *name;
	void (*run)(void);
	bool needs_return;   /* cannot be tried when a return from an exception does not work */
	bool reports_itself; /* user programs name their own checks */
};
extern u32 checks_done, checks_failed;
extern word rounds; /* of what is done many times: at most ROUNDS */
extern bool return_broken;
void choose_checks(const char *command_line);
void run_checks(const struct check *checks, word count);
void report(const char *name, bool ok, const char *what, word got, word wanted);
void want(word got, word wanted, const char *what); /* the first mismatch fails the running check */
#define WANT(expression, wanted) want((word)(expression), (word)(wanted), #expression)

/* ---- memory.c: physical pages; the lowest free one is given, and zeroed when it goes ---- */
extern char __volatile_start[], __volatile_end[];
word page_new(void); /* physical address of a zeroed page, reference count 1 */
void page_share(word physical);
void page_drop(word physical);
u32 page_references(word physical);
u32 pages_in_use(void);
void *memset(void *, int, word);
void *memcpy(void *, const void *, word);
int memcmp(const void *, const void *, word);

/* ---- trap.c: exceptions and the timer's interrupt, as the architecture reports them ---- */
struct frame; /* what an entry saves; the architecture's */
struct fault {
	word kind;    /* FAULT_...: see layout.h */
	word access;  /* of FAULT_ABSENT and FAULT_PROTECTION: ACCESS_... */
	word address; /* of the same: the address that was not to be had */
	word pc;      /* of the instruction */
};
extern struct fault caught;
extern volatile word ticks;
extern void (*tick_hook)(struct frame *);
bool catch_fault(void (*run)(word), word argument); /* true: an exception ended it, see `caught` */
void trap(struct frame *frame, const struct fault *fault, bool from_user);
void timer_interrupt(struct frame *frame, bool from_user); /* acknowledged by the architecture before */
void finish(void) NORETURN;

/* ---- process.c: user processes and system calls ---- */
extern volatile word switches_by_timer, fpu_switches;
void run_program(word program, word argument); /* ready, not yet running */
void run_processes(void);                      /* until all have exited */
word exit_code(word slot);
void processes_finish(void);
void system_call(struct frame *frame);
bool process_fault(struct frame *frame, const struct fault *fault, bool from_user);
void preempt(void);
extern const u8 user_image[], user_image_end[];

/* ---- the checks ---- */
void check_sensitive(void);
void check_exceptions(void);
void check_paging(void);
void check_interrupts(void);
void check_self_modifying(void);
void check_user(void);

/* ==== What an architecture offers =========================================================== */

/* arch.h also defines: POOL_START (physical), DIRECT(physical) (the kernel's address of pool memory),
 * SCRATCH_AREA (16 MiB of kernel addresses the checks map as they like), VOLATILE_SECTION, FRAME_BYTES,
 * FPU_BYTES, NO_EXECUTE (1 where pages can be made not executable), LAZY_FPU (1 where the use of a
 * disabled FPU raises FAULT_FLOATING_POINT), PRIVILEGED_KIND (the fault of a privileged instruction in
 * user mode), BREAKPOINT_KIND. */

/* -- the machine -- */
void arch_start(word boot); /* page tables with rights by section, exceptions; interrupts stay off */
const char *arch_command_line(void);
void arch_put_char(char c);
void arch_power_off(bool failed) NORETURN;

/* -- interrupts; only the timer ever raises one -- */
void interrupts_on(void);
void interrupts_off(void);
word interrupts_save(void); /* turns them off; gives what interrupts_restore takes */
void interrupts_restore(word saved);
bool interrupts_enabled(void); /* as the processor's own status word says */
void interrupts_wait(void);    /* off before and after: waits for one and lets it in */
void interrupts_million_pairs(word pairs, volatile word *inside); /* off; *inside = 1; *inside = 0; on */
void timer_start(word hertz);
void timer_once(word microseconds);
void timer_stop(void); /* and no request from before comes later */
bool timer_pending(void); /* the controller shows a request */

/* -- memory: RIGHT_... of layout.h; root 0 is the kernel's own, which every root has -- */
word arch_root_new(void);
void arch_root_drop(word root); /* the tables, not the pages */
void arch_root_switch(word root);
word arch_root_read(void); /* as the processor's register says; 0 for the kernel's own */
void arch_map(word root, word address, word page, word rights); /* in place of what was there; no flush */
void arch_unmap(word root, word address);                        /* no flush */
void arch_flush(word address); /* in the root in use */
void arch_flush_all(void);
void arch_scratch_drop(void); /* the tables of SCRATCH_AREA, once nothing is mapped there */

/* -- code -- */
void sync_code(word address, word bytes); /* as the manual asks after code was written */
word code_return(void *to, word value);   /* writes a function that returns `value`; its bytes (<= 32) */
word code_set_value(void *to, word value);/* changes the value that it returns; the same bytes */
word code_variants(void);                 /* sensitive sequences that have a known result */
word code_variant(void *to, word which);  /* writes one as a function; its bytes (<= 64) */
bool code_variant_right(word which, word result);

/* -- processes -- */
extern char trap_return[]; /* leaves to user mode by the frame at the stack's top */
void switch_stacks(word *save, word load);
word stack_for(struct frame *frame);  /* what switch_stacks loads so as to go on at trap_return with it */
void arch_enter_process(word stack_top); /* where entries from user mode find their stack */
void frame_start(struct frame *frame, word pc, word stack, word first, word second);
word frame_number(const struct frame *frame);            /* of the system call */
word frame_argument(const struct frame *frame, word n);  /* 0..4 */
void frame_result(struct frame *frame, word value);
word frame_get_result(const struct frame *frame);
word frame_pc(const struct frame *frame);
void frame_catch(struct frame *frame, word pc, word stack, const struct fault *fault); /* four arguments: the fault */
bool frame_from_kernel_would_interrupt(const struct frame *frame); /* interrupts were enabled where it came from */
void thread_register_set(word value);    /* what user mode finds its thread by */

/* -- floating point -- */
void fpu_enable(void);
void fpu_disable(void);
void fpu_save(void *to);
void fpu_load(const void *from);
void fpu_reset(void);

/* -- what is the instruction set's own, under names that all share -- */
void arch_check_mode(void);             /* the processor says that this is the kernel */
void arch_check_status_word(void);      /* flags and mode bits read back as written */
void arch_check_system_registers(void); /* registers of the kernel keep what is written, and show what they must */
void arch_check_user_access(void);      /* accesses made as user mode makes them fault on kernel pages */
void arch_check_return(void);           /* a return from an exception within the kernel; sets return_broken */
void arch_raise_undefined(word unused);
void arch_raise_breakpoint(word unused);

#endif
#endif
