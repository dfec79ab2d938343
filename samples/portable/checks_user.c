/* Runs the user programs. Most report their checks themselves; where several run at a time, the
 * kernel judges by their exit codes. */
#include "kernel.h"

static void run_one(word program)
{
	run_program(program, 0);
	run_processes();
	word code = exit_code(0);
	processes_finish();
	if (code) {
		print("FAIL user: program %d left with code %x\n", program, code);
		checks_failed++;
	}
}

static void run_faults(void) { run_one(PROGRAM_FAULTS); }
static void run_fork(void) { run_one(PROGRAM_FORK); }
static void run_code(void) { run_one(PROGRAM_CODE); }

/* Each program's result, computed here the same way. */
static word expected_sum(word who)
{
	word sum = who + 1;
	for (u32 phase = 0; phase < PHASES; phase++) {
		for (u32 i = 0; i < STEPS; i++)
			sum = 3 * (sum * 1664525 + i) + phase;
	}
	return sum >> 1;
}

/* Two processes meet in each of six phases without ever giving up the CPU: only the timer can bring
 * each of them there. */
static void check_preemption(void)
{
	switches_by_timer = 0;
	run_program(PROGRAM_PREEMPTION, 0);
	run_program(PROGRAM_PREEMPTION, 1);
	run_processes();
	WANT(exit_code(0), expected_sum(0));
	WANT(exit_code(1), expected_sum(1));
	WANT(switches_by_timer >= PHASES, true);
	processes_finish();
}

/* Three processes with different contents of the floating-point registers. */
static void check_floating_point(void)
{
	fpu_switches = 0;
	for (u32 i = 0; i < 3; i++)
		run_program(PROGRAM_FLOATING_POINT, i);
	run_processes();
	for (u32 i = 0; i < 3; i++)
		WANT(exit_code(i), 0);
	WANT(fpu_switches >= 3, true);
	processes_finish();
}

/* One process writes code into a page that another executes. */
static void check_code_of_two(void)
{
	run_program(PROGRAM_CODE_WRITER, 0);
	run_program(PROGRAM_CODE_RUNNER, 0);
	run_processes();
	WANT(exit_code(0), 0);
	WANT(exit_code(1), 0);
	processes_finish();
}

static const struct check checks[] = {
	{"user", run_faults, 1, 1},
	{"processes.preemption", check_preemption, 1, 0},
	{"processes.floating-point", check_floating_point, 1, 0},
	{"memory", run_fork, 1, 1},
	{"user-code", run_code, 1, 1},
	{"user-code.two-processes", check_code_of_two, 1, 0},
};

void check_user(void)
{
	run_checks(checks, LENGTH(checks));
}
