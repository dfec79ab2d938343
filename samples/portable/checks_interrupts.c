/* Interrupts and the interrupt flag. The timer is the only source; a check first waits until the
 * controller shows the request, and so knows what must happen when interrupts are enabled. */
#include "kernel.h"

#define PAIRS (100 * rounds) /* a million */
#define PATIENCE 100000000ul /* turns of an empty loop before a missing tick is a failure */

static volatile word inside VOLATILE_DATA, violations VOLATILE_DATA;

static void pass_time(void)
{
	for (volatile u32 i = 0; i < 200000; i++)
		;
}

static bool wait_ticks(word wanted)
{
	for (word i = 0; i < PATIENCE && ticks < wanted; i++)
		asm volatile("" : : : "memory");
	return ticks >= wanted;
}

/* Interrupts off; the timer's request is pending. */
static void make_pending(void)
{
	interrupts_off();
	ticks = 0;
	timer_once(1000);
	for (u32 i = 0; i < 10000000 && !timer_pending(); i++)
		;
	WANT(timer_pending(), true);
	WANT(ticks, 0);
}

static void check_timer(void)
{
	ticks = 0;
	timer_start(1000);
	interrupts_on();
	WANT(wait_ticks(5), true);
	interrupts_off();
	word seen = ticks;
	pass_time();
	WANT(ticks, seen);
	timer_stop();
}

static void check_queued(void)
{
	make_pending();
	pass_time();
	WANT(ticks, 0);
	interrupts_on();
	pass_time();
	WANT(ticks, 1); /* exactly once */
	interrupts_off();
	timer_stop();
}

static void check_restore_enables(void)
{
	interrupts_on();
	word saved = interrupts_save();
	make_pending();
	interrupts_restore(saved);
	pass_time();
	WANT(ticks, 1);
	interrupts_off();
	timer_stop();
}

static void check_wait(void)
{
	ticks = 0;
	timer_start(1000);
	for (u32 i = 0; i < 3; i++)
		interrupts_wait();
	WANT(ticks, 3);
	WANT(interrupts_enabled(), false);
	timer_stop();
}

static void check_stopped(void)
{
	make_pending();
	timer_stop();
	interrupts_on();
	pass_time();
	interrupts_off();
	WANT(ticks, 0);
}

static void check_flag_after_each(void)
{
	ticks = 0;
	timer_start(1000);
	for (u32 i = 0; i < 1000; i++) {
		interrupts_off();
		bool off = interrupts_enabled();
		interrupts_on();
		bool on = interrupts_enabled();
		WANT(off, false);
		WANT(on, true);
	}
	interrupts_off();
	timer_stop();
}

static void watch_inside(struct frame *frame)
{
	violations += inside;
	violations += !frame_from_kernel_would_interrupt(frame);
}

static void begin_watch(void)
{
	inside = violations = ticks = 0;
	tick_hook = watch_inside;
	timer_start(1000);
}

static void end_watch(void)
{
	WANT(wait_ticks(1), true);
	interrupts_off();
	tick_hook = NULL;
	timer_stop();
	WANT(violations, 0);
}

static void check_pairs(void)
{
	begin_watch();
	interrupts_million_pairs(PAIRS, &inside);
	end_watch();
}

static void check_nested_sections(void)
{
	begin_watch();
	interrupts_on();
	for (u32 i = 0; i < PAIRS / 10; i++) {
		word outer = interrupts_save();
		inside = 1;
		word inner = interrupts_save();
		interrupts_restore(inner);
		inside = 0;
		interrupts_restore(outer);
	}
	WANT(interrupts_enabled(), true);
	end_watch();
}

static const struct check checks[] = {
	{"interrupts.timer", check_timer, 1, 0},
	{"interrupts.queued-while-off", check_queued, 1, 0},
	{"interrupts.restore-enables", check_restore_enables, 1, 0},
	{"interrupts.wait", check_wait, 1, 0},
	{"interrupts.stopped-timer", check_stopped, 1, 0},
	{"interrupts.flag-after-each", check_flag_after_each, 1, 0},
	{"interrupts.million-pairs", check_pairs, 1, 0},
	{"interrupts.nested-sections", check_nested_sections, 1, 0},
};

void check_interrupts(void)
{
	run_checks(checks, LENGTH(checks));
}
