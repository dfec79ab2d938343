/* The order of things: bring the machine up, run the checks, say how many failed, leave. */
#include "kernel.h"

void finish(void)
{
	print("retrap sample: %d checks, %d failed\n", (word)checks_done, (word)checks_failed);
	arch_power_off(checks_failed != 0);
}

static void check_numbers(void)
{
	static volatile word large = ~0ul / 3;
	WANT(large * 3, ~0ul);
	WANT(large % 10, 5);
}

static void check_pages_returned(void)
{
	arch_scratch_drop();
	WANT(pages_in_use(), 0);
}

static const struct check first[] = {{"numbers", check_numbers, 0, 0}};
static const struct check last[] = {{"memory.all-pages-returned", check_pages_returned, 0, 0}};

/* Entered with interrupts off, on the boot stack. */
void kernel_main(word boot)
{
	arch_start(boot);
	print("retrap portable sample kernel\n");
	choose_checks(arch_command_line());
	run_checks(first, LENGTH(first));
	check_sensitive(); /* before anything that needs a return from an exception */
	check_exceptions();
	check_paging();
	check_interrupts();
	check_self_modifying();
	check_user();
	processes_finish();
	run_checks(last, LENGTH(last));
	finish();
}
