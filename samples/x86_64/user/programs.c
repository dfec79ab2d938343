/* The user programs but for the two larger ones: preemption, FPU, fork and demand paging,
 * 32-bit code. */
#include "user.h"

u64 user_main(u64 program, u64 argument)
{
	switch (program) {
	case PROGRAM_FAULTS: return run_faults();
	case PROGRAM_PREEMPTION: return run_preemption(argument);
	case PROGRAM_FLOATING_POINT: return run_floating_point(argument);
	case PROGRAM_FORK: return run_fork();
	case PROGRAM_SELF_MODIFYING: return run_self_modifying();
	case PROGRAM_COMPATIBILITY: return run_compatibility();
	}
	return 1;
}

/* ---- two processes that only the timer lets meet ---- */
static bool meet(volatile u64 *shared, u64 who, u64 phase)
{
	shared[who] = phase + 1;
	for (u64 i = 0; i < 2000000000; i++)
		if (shared[1 - who] > phase)
			return 1;
	return 0;
}

u64 run_preemption(u64 who)
{
	u64 sum = who + 1;
	SYS(SYS_SHARE);
	for (u64 phase = 0; phase < PHASES; phase++) {
		for (u64 i = 0; i < STEPS; i++) {
			u64 x = sum * 6364136223846793005ul + i;
			sum = who ? call_by_int(SYS_ECHO, x, phase) : SYS(SYS_ECHO, x, phase);
		}
		if (!meet((volatile u64 *)SHARED, who, phase))
			return 0;
	}
	return sum >> 1;
}

/* ---- FPU ---- */
u64 hold_registers(u64 pattern, u64 rounds, u64 yields);

u64 run_floating_point(u64 who)
{
	return hold_registers(0x1111111111 * (who + 1), 200, 1) + hold_registers(0x123456789 * (who + 1), 20000, 0);
}

/* ---- demand paging, fork ---- */
static volatile u64 *heap_page(u64 n) { return (volatile u64 *)(HEAP + 4096 * n); }

static u64 child(void)
{
	u64 wrong = 0;
	for (u64 i = 0; i < 8; i++)
		wrong += heap_page(i)[1] != 1000 + i;
	for (u64 i = 0; i < 3; i++)
		heap_page(i)[1] = 2000 + i;
	for (u64 i = 0; i < 8; i++)
		wrong += heap_page(i)[1] != (i < 3 ? 2000 : 1000) + i;
	SYS(SYS_STORE, &heap_page(3)[1], 2003); /* by the kernel, which obeys write protection */
	wrong += heap_page(3)[1] != 2003;
	return 100 + wrong;
}

static void check_demand(struct check *check)
{
	u64 before = SYS(SYS_QUERY, QUERY_DEMAND);
	for (u64 i = 0; i < 8; i++) {
		WANT(heap_page(i)[1], 0);
		heap_page(i)[1] = 1000 + i;
	}
	WANT(SYS(SYS_QUERY, QUERY_DEMAND) - before, 8);
	SYS(SYS_STORE, &heap_page(20)[5], 77); /* the kernel faults the page in */
	WANT(heap_page(20)[5], 77);
	WANT(SYS(SYS_QUERY, QUERY_DEMAND) - before, 9);
	/* One access over two absent pages. */
	*(volatile u64 *)((u64)heap_page(31) - 4) = 0x1122334455667788;
	WANT(*(volatile u64 *)((u64)heap_page(31) - 4), 0x1122334455667788);
	WANT(SYS(SYS_QUERY, QUERY_DEMAND) - before, 11);
	volatile u8 deep[20000]; /* the stack grows the same way */
	deep[0] = 9;
	deep[19999] = 8;
	WANT(deep[0] + deep[19999], 17);
}

static void check_fork(struct check *check)
{
	u64 copies = SYS(SYS_QUERY, QUERY_COPIES), reuses = SYS(SYS_QUERY, QUERY_REUSES);
	u64 slot = SYS(SYS_FORK);
	if (!slot)
		SYS(SYS_EXIT, child());
	WANT(SYS(SYS_WAIT, slot), 100);
	WANT(SYS(SYS_QUERY, QUERY_COPIES) - copies, 4);
	for (u64 i = 0; i < 8; i++)
		WANT(heap_page(i)[1], 1000 + i);
	for (u64 i = 0; i < 5; i++)
		heap_page(i)[1] = 3000 + i;
	WANT(SYS(SYS_QUERY, QUERY_COPIES) - copies, 4);
	WANT(SYS(SYS_QUERY, QUERY_REUSES) - reuses, 5);
}

/* A fork in a fork: three hold the same pages. */
static void check_fork_twice(struct check *check)
{
	u64 copies = SYS(SYS_QUERY, QUERY_COPIES);
	heap_page(7)[0] = 5;
	u64 slot = SYS(SYS_FORK);
	if (!slot) {
		u64 inner = SYS(SYS_FORK);
		if (!inner) {
			heap_page(7)[0] = 6;
			SYS(SYS_EXIT, heap_page(7)[0]);
		}
		u64 code = SYS(SYS_WAIT, inner);
		heap_page(7)[0] += 10;
		SYS(SYS_EXIT, code * 100 + heap_page(7)[0]);
	}
	WANT(SYS(SYS_WAIT, slot), 615);
	WANT(heap_page(7)[0], 5);
	WANT(SYS(SYS_QUERY, QUERY_COPIES) - copies, 2);
}

u64 run_fork(void)
{
	CHECK("memory.demand-paging", check_demand(check));
	CHECK("memory.copy-on-write-fork", check_fork(check));
	CHECK("memory.fork-in-fork", check_fork_twice(check));
	return 0;
}

/* ---- 32-bit code ---- */
u64 compatibility_code(u64 x, u64 *cs), caller_cs_in_32_bits(void), spin_in_32_bits(u64 turns), far_jump(void);
void fault_in_32_bits(u64);
extern char fault_in_32_bits_at[];

static void check_compatibility(struct check *check)
{
	u64 cs = 0;
	WANT(compatibility_code(11, &cs), 3 * 76 + 1000);
	WANT(cs, 0x23);
	WANT(caller_cs_in_32_bits(), 0x23);
	WANT(far_jump(), 0x33);
}

static void check_fault_in_32_bits(struct check *check)
{
	struct fault fault;
	WANT(catch_fault(fault_in_32_bits, 0, &fault), 1);
	WANT(fault.vector, 13);
	WANT(fault.error, 0);
	WANT(fault.rip, fault_in_32_bits_at);
	WANT(fault.cs, 0x23);
}

u64 run_compatibility(void)
{
	CHECK("compatibility.far-transfers", check_compatibility(check));
	CHECK("compatibility.preempted-loop", WANT(spin_in_32_bits(3000000), 3000000));
	CHECK("compatibility.fault", check_fault_in_32_bits(check));
	return 0;
}
