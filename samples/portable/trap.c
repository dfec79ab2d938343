/* Exceptions and the timer's interrupt: to the running check, or to the process that had them. */
#include "kernel.h"

struct fault caught VOLATILE_DATA;
volatile word ticks VOLATILE_DATA;
void (*tick_hook)(struct frame *);
extern word catch_stack;
void catch_resume(void) NORETURN; /* into the innermost catch_fault, without a return from the exception */

static void panic(const struct fault *fault)
{
	print("FAIL unexpected: fault %d, access %d, address %x, PC %x\n", fault->kind, fault->access, fault->address,
	      fault->pc);
	checks_failed++;
	finish();
}

void trap(struct frame *frame, const struct fault *fault, bool from_user)
{
	if (process_fault(frame, fault, from_user))
		return;
	if (!catch_stack || from_user)
		panic(fault);
	caught = *fault;
	catch_resume();
}

void timer_interrupt(struct frame *frame, bool from_user)
{
	ticks++;
	if (tick_hook)
		tick_hook(frame);
	else if (from_user)
		preempt();
}
