/* What user mode must not do, and what it sees of itself. */
#include "user.h"

#define AREA 0x20000000

#define DECLARE(name) void name(word);
PRIVILEGED(DECLARE)
#define ENTRY(name) name,
static void (*const privileged[])(word) = {PRIVILEGED(ENTRY)};

static void check_privileged(struct check *check)
{
	struct fault fault;
	for (word i = 0; i < LENGTH(privileged); i++) {
		fault.kind = 0;
		WANT(catch_fault(privileged[i], STACK_TOP - 64, &fault), 1);
		WANT(fault.kind, USER_PRIVILEGED_KIND);
		WANT(fault.pc, privileged[i]);
	}
}

static void check_kind(struct check *check, void (*run)(word), word kind)
{
	struct fault fault = {0, 0, 0, 0};
	WANT(catch_fault(run, 0, &fault), 1);
	WANT(fault.kind, kind);
}

static void check_access(struct check *check, void (*run)(word), word address, word kind, word access)
{
	struct fault fault = {0, 0, 0, 0};
	WANT(catch_fault(run, address, &fault), 1);
	if (kind)
		WANT(fault.kind, kind);
	WANT(fault.access, access);
	WANT(fault.address, address);
}

static void check_read_only(struct check *check)
{
	SYS(SYS_MAP, AREA, 0);
	check_access(check, do_write, AREA + 8, FAULT_PROTECTION, ACCESS_WRITE);
	SYS(SYS_PROTECT, AREA, RIGHT_WRITE);
	struct fault fault;
	WANT(catch_fault(do_write, AREA + 8, &fault), 0);
	SYS(SYS_PROTECT, AREA, 0);
	check_access(check, do_write, AREA + 8, FAULT_PROTECTION, ACCESS_WRITE);
	SYS(SYS_UNMAP, AREA);
}

static void check_no_execute(struct check *check)
{
	struct fault fault = {0, 0, 0, 0};
	SYS(SYS_MAP, AREA, RIGHT_WRITE);
	sync_code(AREA, code_return((void *)AREA, 1));
	SYS(SYS_PROTECT, AREA, 0);
	WANT(catch_fault(do_jump, AREA, &fault), USER_NO_EXECUTE);
	SYS(SYS_PROTECT, AREA, RIGHT_EXECUTE);
	WANT(catch_fault(do_jump, AREA, &fault), 0);
	SYS(SYS_UNMAP, AREA);
}

/* The kernel's pages: any kind of fault, so that it is one. */
static void check_kernel_pages(struct check *check)
{
	word page = SYS(SYS_QUERY, QUERY_KERNEL_PAGE) & -(word)PAGE;
	check_access(check, do_read, page, 0, ACCESS_READ);
	check_access(check, do_write, page, 0, ACCESS_WRITE);
	check_access(check, do_jump, page, 0, ACCESS_EXECUTE);
}

static void check_return(struct check *check)
{
	word at = 1, seen = return_address(SYS_QUERY, QUERY_RETURN_PC, &at);
	WANT(seen, at);
}

static void check_thread(struct check *check)
{
	volatile word cell = 0x1234;
	SYS(SYS_SET_THREAD, &cell);
	WANT(thread_word(), 0x1234);
	cell = 0x5678;
	SYS(SYS_YIELD);
	WANT(thread_word(), 0x5678);
	WANT(SYS(SYS_QUERY, QUERY_THREAD), &cell);
	SYS(SYS_SET_THREAD, 0);
	WANT(SYS(SYS_QUERY, QUERY_THREAD), 0);
}

word run_faults(void)
{
	CHECK("user.privileged-instructions", check_privileged(check));
	CHECK("user.undefined", check_kind(check, do_undefined, FAULT_UNDEFINED));
	CHECK("user.breakpoint", check_kind(check, do_breakpoint, USER_BREAKPOINT_KIND));
	CHECK("user.read-absent", check_access(check, do_read, AREA, FAULT_ABSENT, ACCESS_READ));
	CHECK("user.write-absent", check_access(check, do_write, AREA + 16, FAULT_ABSENT, ACCESS_WRITE));
	CHECK("user.execute-absent", check_access(check, do_jump, AREA + 32, FAULT_ABSENT, ACCESS_EXECUTE));
	CHECK("user.read-only", check_read_only(check));
	CHECK("user.no-execute", check_no_execute(check));
	CHECK("user.kernel-pages", check_kernel_pages(check));
	CHECK("user.return-address", check_return(check));
	CHECK("user.thread-register", check_thread(check));
	return 0;
}
