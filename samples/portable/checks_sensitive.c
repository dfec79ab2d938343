/* Sensitive instructions, and exceptions in the kernel. The first group fails where a guest is run
 * deprivileged and not virtualised: these are the negative controls. */
#include "kernel.h"

static void check_flag_off(void)
{
	interrupts_off();
	WANT(interrupts_enabled(), false);
}

static void check_flag_on(void)
{
	interrupts_on();
	bool on = interrupts_enabled();
	interrupts_off();
	WANT(on, true);
	WANT(interrupts_enabled(), false);
}

static void check_restore(void)
{
	interrupts_on();
	word saved = interrupts_save();
	WANT(interrupts_enabled(), false);
	word inner = interrupts_save();
	interrupts_restore(inner);
	WANT(interrupts_enabled(), false);
	interrupts_restore(saved);
	bool on = interrupts_enabled();
	interrupts_off();
	WANT(on, true);
}

static const struct check sensitive[] = {
	{"sensitive.interrupts-off", check_flag_off, 0, 0},
	{"sensitive.interrupts-on", check_flag_on, 0, 0},
	{"sensitive.interrupts-restore", check_restore, 0, 0},
	{"sensitive.mode", arch_check_mode, 0, 0},
	{"sensitive.status-word", arch_check_status_word, 0, 0},
	{"sensitive.system-registers", arch_check_system_registers, 0, 0},
	{"sensitive.user-access", arch_check_user_access, 0, 0},
	{"sensitive.return", arch_check_return, 0, 0},
};

void check_sensitive(void)
{
	run_checks(sensitive, LENGTH(sensitive));
}

#define AREA (SCRATCH_AREA + 0x10000)

static NOINLINE void read_from(word a) { (void)*(volatile word *)a; }
static NOINLINE void write_to(word a) { *(volatile word *)a = 0x77; }
static NOINLINE void call(word a) { ((void (*)(void))a)(); }

static void check_read(void)
{
	WANT(catch_fault(read_from, AREA + 8), true);
	WANT(caught.kind, FAULT_ABSENT);
	WANT(caught.access, ACCESS_READ);
	WANT(caught.address, AREA + 8);
}

static void check_write(void)
{
	WANT(catch_fault(write_to, AREA + 16), true);
	WANT(caught.kind, FAULT_ABSENT);
	WANT(caught.access, ACCESS_WRITE);
	WANT(caught.address, AREA + 16);
}

static void check_call(void)
{
	WANT(catch_fault(call, AREA + 32), true);
	WANT(caught.kind, FAULT_ABSENT);
	WANT(caught.access, ACCESS_EXECUTE);
	WANT(caught.address, AREA + 32);
	WANT(caught.pc, AREA + 32);
}

static void check_undefined(void)
{
	WANT(catch_fault(arch_raise_undefined, 0), true);
	WANT(caught.kind, FAULT_UNDEFINED);
}

static void check_breakpoint(void)
{
	WANT(catch_fault(arch_raise_breakpoint, 0), true);
	WANT(caught.kind, BREAKPOINT_KIND);
}

static NOINLINE void nested(word depth)
{
	if (depth)
		WANT(catch_fault(nested, depth - 1), true);
	read_from(AREA + depth * 8);
}

static void check_nested(void)
{
	WANT(catch_fault(nested, 5), true);
	WANT(caught.address, AREA + 40);
}

static void check_many(void)
{
	for (word i = 0; i < 1000; i++) {
		WANT(catch_fault(i & 1 ? read_from : write_to, AREA + 8 * i), true);
		WANT(caught.address, AREA + 8 * i);
	}
}

static const struct check exceptions[] = {
	{"exceptions.read-absent", check_read, 0, 0},
	{"exceptions.write-absent", check_write, 0, 0},
	{"exceptions.execute-absent", check_call, 0, 0},
	{"exceptions.undefined", check_undefined, 0, 0},
	{"exceptions.breakpoint", check_breakpoint, 0, 0},
	{"exceptions.nested", check_nested, 0, 0},
	{"exceptions.thousand", check_many, 0, 0},
};

void check_exceptions(void)
{
	run_checks(exceptions, LENGTH(exceptions));
}
