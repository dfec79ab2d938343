/* Runs the user programs. Most report their checks themselves; where two run at a time, the
 * kernel judges by their exit codes. */
#include "kernel.h"
#include "system_calls.h"

static void run_one(u32 program)
{
	run_program(program, 0);
	run_processes();
	u64 code = exit_code(0);
	processes_finish();
	if (code) {
		print("FAIL user: program %d left with code %x\n", (u64)program, code);
		checks_failed++;
	}
}

static void run_faults(void) { run_one(PROGRAM_FAULTS); }
static void run_fork(void) { run_one(PROGRAM_FORK); }
static void run_compatibility(void) { run_one(PROGRAM_COMPATIBILITY); }
static void run_self_modifying(void) { run_one(PROGRAM_SELF_MODIFYING); }

/* Each program's result, computed here the same way. */
static u64 expected_sum(u64 who)
{
	u64 sum = who + 1;
	for (u32 phase = 0; phase < PHASES; phase++) {
		for (u32 i = 0; i < STEPS; i++)
			sum = 3 * (sum * 6364136223846793005ul + i) + phase;
	}
	return sum >> 1;
}

/* Two processes meet in each of six phases without ever giving up the CPU: only the timer can
 * bring each of them there. One calls by SYSCALL, the other by INT 0x80. */
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

/* Three processes with different FPU and SSE contents, switched lazily. */
static void check_floating_point(void)
{
	fpu_faults = 0;
	for (u32 i = 0; i < 3; i++)
		run_program(PROGRAM_FLOATING_POINT, i);
	run_processes();
	for (u32 i = 0; i < 3; i++)
		WANT(exit_code(i), 0);
	WANT(fpu_faults >= 3, true);
	processes_finish();
}

static const struct check checks[] = {
	{"user", run_faults, 1, 1},
	{"processes.preemption", check_preemption, 1, 0},
	{"processes.floating-point", check_floating_point, 1, 0},
	{"memory", run_fork, 1, 1},
	{"compatibility", run_compatibility, 1, 1},
	{"user-self-modifying", run_self_modifying, 1, 1},
};

void check_user(void)
{
	run_checks(checks, LENGTH(checks));
}
