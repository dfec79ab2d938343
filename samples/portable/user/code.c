/* Self-modifying code in user mode, 10 000 rounds of each form, with the timer running; by one
 * process and by two. Maintenance is done where the instruction set's manual asks for it. */
#include "user.h"

#define CODE 0x20000000
#define ALIAS 0x21000000
#define BOTH (RIGHT_WRITE | RIGHT_EXECUTE)

typedef word (*code)(void);

static word run(word at) { return ((code)at)(); }
static word rounds_asked(void) { return SYS(SYS_QUERY, QUERY_ROUNDS); }

static word own_page(word rounds)
{
	word stale = 0;
	SYS(SYS_MAP, CODE, BOTH);
	code_return((void *)CODE + 0x7e0, 0);
	for (word i = 1; i <= rounds; i++) {
		sync_code(CODE + 0x7e0, code_set_value((void *)CODE + 0x7e0, i));
		stale += run(CODE + 0x7e0) != i;
	}
	SYS(SYS_UNMAP, CODE);
	return stale;
}

static word double_mapping(word rounds)
{
	word stale = 0;
	SYS(SYS_MAP, ALIAS, RIGHT_WRITE);
	code_return((void *)ALIAS + 0x20, 0);
	SYS(SYS_ALIAS, CODE, ALIAS, RIGHT_EXECUTE);
	for (word i = 1; i <= rounds; i++) {
		word bytes = code_set_value((void *)ALIAS + 0x20, i);
		sync_code(ALIAS + 0x20, bytes);
		sync_code(CODE + 0x20, bytes);
		stale += run(CODE + 0x20) != i;
	}
	SYS(SYS_UNMAP, CODE);
	SYS(SYS_UNMAP, ALIAS);
	return stale;
}

static word flips(word rounds)
{
	word stale = 0;
	SYS(SYS_MAP, CODE, RIGHT_WRITE);
	code_return((void *)CODE + 0x40, 0);
	for (word i = 1; i <= rounds; i++) {
		SYS(SYS_PROTECT, CODE, RIGHT_WRITE);
		word bytes = code_set_value((void *)CODE + 0x40, i);
		SYS(SYS_PROTECT, CODE, RIGHT_EXECUTE);
		sync_code(CODE + 0x40, bytes);
		stale += run(CODE + 0x40) != i;
	}
	SYS(SYS_UNMAP, CODE);
	return stale;
}

static word reused(word rounds)
{
	word stale = 0;
	for (word i = 1; i <= rounds; i++) {
		word at = CODE + i % 7 * PAGE, offset = i % 5 * 64;
		SYS(SYS_MAP, at, BOTH);
		code_return((void *)at + offset, 0);
		sync_code(at + offset, code_set_value((void *)at + offset, i));
		stale += run(at + offset) != i;
		SYS(SYS_UNMAP, at);
	}
	return stale;
}

word run_code(void)
{
	word rounds = rounds_asked();
	CHECK("user-code.own-page", WANT(own_page(rounds), 0));
	CHECK("user-code.double-mapping", WANT(double_mapping(rounds), 0));
	CHECK("user-code.write-execute-flips", WANT(flips(rounds), 0));
	CHECK("user-code.reused-pages", WANT(reused(rounds), 0));
	return 0;
}

/* ---- two processes: turns are taken through words of a page that both have ---- */
#define TURNS ((volatile word *)SHARED) /* [0]: rounds written, [1]: rounds executed */
#define SHARED_CODE (SHARED + PAGE)

static void await(word which, word turn)
{
	while (TURNS[which] < turn)
		SYS(SYS_YIELD);
}

word run_code_writer(void)
{
	word rounds = rounds_asked();
	SYS(SYS_SHARE, SHARED, RIGHT_WRITE, 0);
	SYS(SYS_SHARE, SHARED_CODE, RIGHT_WRITE, 1);
	code_return((void *)SHARED_CODE + 0x80, 0);
	for (word i = 1; i <= rounds; i++) {
		await(1, i - 1);
		sync_code(SHARED_CODE + 0x80, code_set_value((void *)SHARED_CODE + 0x80, i));
		TURNS[0] = i;
	}
	return 0;
}

word run_code_runner(void)
{
	word stale = 0, rounds = rounds_asked();
	SYS(SYS_SHARE, SHARED, RIGHT_WRITE, 0);
	SYS(SYS_SHARE, SHARED_CODE, RIGHT_EXECUTE, 1);
	for (word i = 1; i <= rounds; i++) {
		await(0, i);
		sync_code(SHARED_CODE + 0x80, 32);
		stale += run(SHARED_CODE + 0x80) != i;
		TURNS[1] = i;
	}
	return stale;
}
