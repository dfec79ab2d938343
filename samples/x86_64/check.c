/* Named checks: each prints one line, "ok NAME" or "FAIL NAME: detail". */
#include "kernel.h"

u32 checks_done, checks_failed;
u64 rounds = ROUNDS; /* \"rounds=N\" on the command line, where that is fewer */
bool iret_broken; /* found by returns.iretq-kernel: nothing that returns from an exception is tried then */
static const char *failure;
static u64 failure_got, failure_wanted;
static char chosen[32]; /* "only=PREFIX" on the command line */

/* What follows `name` on the command line, up to the next blank; NULL where it is not there. */
static const char *word_after(const char *command_line, const char *name, u64 length)
{
	for (const char *c = command_line; c && *c; c++)
		if (!memcmp(c, name, length) && (c == command_line || c[-1] == ' '))
			return c + length;
	return NULL;
}

void choose_checks(const char *command_line)
{
	const char *only = word_after(command_line, "only=", 5), *number = word_after(command_line, "rounds=", 7);
	for (u32 i = 0; only && i < sizeof(chosen) - 1 && only[i] && only[i] != ' '; i++)
		chosen[i] = only[i];
	u64 asked = 0;
	for (; number && *number >= '0' && *number <= '9' && asked < ROUNDS; number++)
		asked = asked * 10 + (*number - '0');
	if (asked && asked < ROUNDS)
		rounds = asked;
}

static bool is_chosen(const char *name)
{
	for (u32 i = 0; chosen[i]; i++)
		if (chosen[i] != name[i])
			return !name[i]; /* a group is chosen with any of its checks */
	return true;
}

void report(const char *name, bool ok, const char *what, u64 got, u64 wanted)
{
	if (!is_chosen(name))
		return;
	checks_done++;
	if (ok) {
		print("ok %s\n", name);
		return;
	}
	checks_failed++;
	print("FAIL %s: %s is %x, wanted %x\n", name, what, got, wanted);
}

void want(u64 got, u64 wanted, const char *what)
{
	if (got == wanted || failure)
		return;
	failure = what;
	failure_got = got;
	failure_wanted = wanted;
}

static void run_check(const struct check *check)
{
	if (!is_chosen(check->name))
		return;
	if (check->needs_iret && iret_broken) {
		checks_done++;
		checks_failed++;
		print("FAIL %s: not tried, IRETQ does not work\n", check->name);
		return;
	}
	check->run();
	if (!check->reports_itself)
		report(check->name, !failure, failure, failure_got, failure_wanted);
	failure = NULL;
	failure_got = failure_wanted = 0;
}

void run_checks(const struct check *checks, u64 count)
{
	for (u64 i = 0; i < count; i++)
		run_check(&checks[i]);
}
