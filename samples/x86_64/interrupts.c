/* Interrupts and the interrupt flag. The timer's line is the only one unmasked; a check first
 * waits until the controller shows the request, and so knows what must happen at an enable. */
#include "kernel.h"

#define PAIRS (100 * rounds) /* a million */
#define PATIENCE 100000000ul /* turns of an empty loop before a missing tick is a failure */

static volatile u64 inside VOLATILE_DATA, violations VOLATILE_DATA;
extern char after_sti_nop[], after_hlt[], after_popf[], after_iret[];

static void pass_time(void)
{
	for (volatile u32 i = 0; i < 200000; i++)
		;
}

static bool wait_ticks(u64 wanted)
{
	for (u64 i = 0; i < PATIENCE && ticks < wanted; i++)
		asm volatile("" : : : "memory");
	return ticks >= wanted;
}

/* Interrupts off; the timer's request is pending in the controller. */
static void make_pending(bool periodic)
{
	cli();
	ticks = 0;
	interrupted_rip = 0;
	if (periodic)
		timer_start(1000);
	else
		timer_once(1000);
	outb(0x20, 0x0a);
	for (u32 i = 0; i < 10000000 && !(inb(0x20) & 1); i++)
		;
	WANT(inb(0x20) & 1, 1);
	WANT(ticks, 0);
}

static void check_timer(void)
{
	ticks = 0;
	timer_start(1000);
	sti();
	WANT(wait_ticks(5), true);
	cli();
	u64 seen = ticks;
	pass_time();
	WANT(ticks, seen);
	timer_stop();
}

static void check_queued(void)
{
	make_pending(false);
	asm volatile("sti; nop; nop" : : : "memory");
	WANT(ticks, 1);
	pass_time();
	WANT(ticks, 1);
	cli();
	timer_stop();
}

static void check_sti_shadow(void)
{
	make_pending(false);
	asm volatile("sti; nop; after_sti_nop: nop; nop" : : : "memory");
	cli();
	WANT(ticks, 1);
	WANT(interrupted_rip, after_sti_nop);
	make_pending(false);
	asm volatile("sti; cli; nop; nop" : : : "memory"); /* nothing comes between the two */
	WANT(ticks, 0);
	timer_stop();
}

static void check_sti_hlt(void)
{
	make_pending(true);
	asm volatile("sti; hlt; after_hlt: cli" : : : "memory");
	WANT(ticks, 1);
	WANT(interrupted_rip, after_hlt);
	timer_stop();
}

static void check_popf(void)
{
	make_pending(false);
	asm volatile("pushq $0x202; popfq; after_popf: nop; nop" : : : "memory", "cc");
	cli();
	WANT(ticks, 1);
	WANT(interrupted_rip, after_popf); /* POPF has no shadow */
	timer_stop();
}

static void check_iretq(void)
{
	make_pending(false);
	asm volatile("movq %%rsp, %%rcx; pushq %0; pushq %%rcx; pushq $0x202; pushq %1; pushq $after_iret; iretq\n"
		     "after_iret: nop; nop"
		     :
		     : "i"(KERNEL_DS), "i"(KERNEL_CS)
		     : "memory", "rcx", "cc");
	cli();
	WANT(ticks, 1);
	WANT(interrupted_rip, after_iret);
	timer_stop();
}

static void check_hlt(void)
{
	ticks = 0;
	timer_start(1000);
	for (u32 i = 0; i < 3; i++)
		asm volatile("sti; hlt; cli" : : : "memory");
	WANT(ticks, 3);
	timer_stop();
}

static void check_flag_after_each(void)
{
	ticks = 0;
	timer_start(1000);
	for (u32 i = 0; i < 1000; i++) {
		cli();
		u64 off = read_flags();
		sti();
		u64 on = read_flags();
		WANT(off & FLAG_IF, 0);
		WANT(on & FLAG_IF, FLAG_IF);
	}
	cli();
	timer_stop();
}

static void watch_inside(struct frame *frame)
{
	ticks++;
	violations += inside;
	violations += !(frame->rflags & FLAG_IF);
	outb(0x20, 0x20);
}

static void check_pairs(void)
{
	u64 left = PAIRS;
	inside = violations = ticks = 0;
	trap_hook[0x20] = watch_inside;
	timer_start(1000);
	asm volatile("1: cli\n"
		     "movq $1, %[inside]\n"
		     "movq $0, %[inside]\n"
		     "sti\n"
		     "decq %[left]\n"
		     "jnz 1b"
		     : [left] "+r"(left), [inside] "+m"(inside)
		     :
		     : "memory", "cc");
	WANT(wait_ticks(1), true);
	cli();
	trap_hook[0x20] = NULL;
	timer_stop();
	WANT(left, 0);
	WANT(violations, 0);
}

/* The same by PUSHF, CLI, POPF: the way kernels guard a section whose caller may hold off interrupts. */
static void check_saved_pairs(void)
{
	u64 left = PAIRS / 10;
	inside = violations = ticks = 0;
	trap_hook[0x20] = watch_inside;
	timer_start(1000);
	sti();
	asm volatile("1: pushfq\n"
		     "cli\n"
		     "movq $1, %[inside]\n"
		     "pushfq\n" /* nested: off stays off */
		     "cli\n"
		     "popfq\n"
		     "movq $0, %[inside]\n"
		     "popfq\n"
		     "decq %[left]\n"
		     "jnz 1b"
		     : [left] "+r"(left), [inside] "+m"(inside)
		     :
		     : "memory", "cc");
	WANT(read_flags() & FLAG_IF, FLAG_IF);
	WANT(wait_ticks(1), true);
	cli();
	trap_hook[0x20] = NULL;
	timer_stop();
	WANT(violations, 0);
}

/* A masked line stays pending and comes when it is unmasked. */
static void check_masked(void)
{
	make_pending(false);
	outb(0x21, 0xff);
	asm volatile("sti; nop; nop" : : : "memory");
	WANT(ticks, 0);
	outb(0x21, 0xfe);
	WANT(wait_ticks(1), true);
	pass_time();
	WANT(ticks, 1);
	cli();
	timer_stop();
}

static const struct check checks[] = {
	{"interrupts.timer", check_timer, 1, 0},
	{"interrupts.queued-while-disabled", check_queued, 1, 0},
	{"interrupts.sti-shadow", check_sti_shadow, 1, 0},
	{"interrupts.sti-hlt", check_sti_hlt, 1, 0},
	{"interrupts.popf-enables", check_popf, 1, 0},
	{"interrupts.iretq-enables", check_iretq, 1, 0},
	{"interrupts.masked-line", check_masked, 1, 0},
	{"interrupts.hlt", check_hlt, 1, 0},
	{"interrupts.flag-after-each", check_flag_after_each, 1, 0},
	{"interrupts.million-cli-sti", check_pairs, 1, 0},
	{"interrupts.nested-sections", check_saved_pairs, 1, 0},
};

void check_interrupts(void)
{
	run_checks(checks, LENGTH(checks));
}
