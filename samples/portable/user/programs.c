/* The user programs but for faults and code: preemption, floating point, fork and demand paging. */
#include "user.h"

static bool meet(volatile word *shared, word who, word phase)
{
	shared[who] = phase + 1;
	for (word i = 0; i < 2000000000; i++)
		if (shared[1 - who] > phase)
			return 1;
	return 0;
}

static word run_preemption(word who)
{
	word sum = who + 1;
	SYS(SYS_SHARE, SHARED, RIGHT_WRITE, 0);
	for (word phase = 0; phase < PHASES; phase++) {
		for (word i = 0; i < STEPS; i++)
			sum = SYS(SYS_ECHO, sum * 1664525 + i, phase);
		if (!meet((volatile word *)SHARED, who, phase))
			return 0;
	}
	return sum >> 1;
}

static word run_floating_point(word who)
{
	return hold_registers(0x1111111 * (who + 1), 200, 1) + hold_registers(0x1234567 * (who + 1), 20000, 0);
}

static volatile word *heap_page(word n) { return (volatile word *)(HEAP + PAGE * n); }

static word child(void)
{
	word wrong = 0;
	for (word i = 0; i < 8; i++)
		wrong += heap_page(i)[1] != 1000 + i;
	for (word i = 0; i < 3; i++)
		heap_page(i)[1] = 2000 + i;
	for (word i = 0; i < 8; i++)
		wrong += heap_page(i)[1] != (i < 3 ? 2000 : 1000) + i;
	SYS(SYS_STORE, &heap_page(3)[1], 2003); /* by the kernel, which obeys write protection */
	wrong += heap_page(3)[1] != 2003;
	return 100 + wrong;
}

static void check_demand(struct check *check)
{
	word before = SYS(SYS_QUERY, QUERY_DEMAND);
	for (word i = 0; i < 8; i++) {
		WANT(heap_page(i)[1], 0);
		heap_page(i)[1] = 1000 + i;
	}
	WANT(SYS(SYS_QUERY, QUERY_DEMAND) - before, 8);
	SYS(SYS_STORE, &heap_page(20)[5], 77); /* the kernel faults the page in */
	WANT(heap_page(20)[5], 77);
	WANT(SYS(SYS_QUERY, QUERY_DEMAND) - before, 9);
	volatile u8 deep[20000]; /* the stack grows the same way */
	deep[0] = 9;
	deep[19999] = 8;
	WANT(deep[0] + deep[19999], 17);
	WANT(SYS(SYS_QUERY, QUERY_DEMAND) - before, 9);
}

static void check_fork(struct check *check)
{
	word copies = SYS(SYS_QUERY, QUERY_COPIES), reuses = SYS(SYS_QUERY, QUERY_REUSES);
	word slot = SYS(SYS_FORK);
	if (!slot)
		SYS(SYS_EXIT, child());
	WANT(SYS(SYS_WAIT, slot), 100);
	WANT(SYS(SYS_QUERY, QUERY_COPIES) - copies, 4);
	for (word i = 0; i < 8; i++)
		WANT(heap_page(i)[1], 1000 + i);
	for (word i = 0; i < 5; i++)
		heap_page(i)[1] = 3000 + i;
	WANT(SYS(SYS_QUERY, QUERY_COPIES) - copies, 4);
	WANT(SYS(SYS_QUERY, QUERY_REUSES) - reuses, 5);
}

/* A fork in a fork: three hold the same pages. */
static void check_fork_twice(struct check *check)
{
	word copies = SYS(SYS_QUERY, QUERY_COPIES);
	heap_page(7)[0] = 5;
	word slot = SYS(SYS_FORK);
	if (!slot) {
		word inner = SYS(SYS_FORK);
		if (!inner) {
			heap_page(7)[0] = 6;
			SYS(SYS_EXIT, heap_page(7)[0]);
		}
		word code = SYS(SYS_WAIT, inner);
		heap_page(7)[0] += 10;
		SYS(SYS_EXIT, code * 100 + heap_page(7)[0]);
	}
	WANT(SYS(SYS_WAIT, slot), 615);
	WANT(heap_page(7)[0], 5);
	WANT(SYS(SYS_QUERY, QUERY_COPIES) - copies, 2);
}

static word run_fork(void)
{
	CHECK("memory.demand-paging", check_demand(check));
	CHECK("memory.copy-on-write-fork", check_fork(check));
	CHECK("memory.fork-in-fork", check_fork_twice(check));
	return 0;
}

word user_main(word program, word argument)
{
	switch (program) {
	case PROGRAM_FAULTS: return run_faults();
	case PROGRAM_PREEMPTION: return run_preemption(argument);
	case PROGRAM_FLOATING_POINT: return run_floating_point(argument);
	case PROGRAM_FORK: return run_fork();
	case PROGRAM_CODE: return run_code();
	case PROGRAM_CODE_WRITER: return run_code_writer();
	case PROGRAM_CODE_RUNNER: return run_code_runner();
	}
	return 1;
}
