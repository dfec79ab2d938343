/* What a kernel does to its page tables, one kind of work after the other, each between a "begin" and an "end" line:
 * `retrap bench memory` counts what happens in between. It runs on an architecture's layer of the portable sample.
 * All of it runs in the kernel, on pages of the user half, so that only memory is measured. */
#include "kernel.h"

#define AREA 0x10000000ul   /* of a process */
#ifndef PHYSICAL_BASE
#define PHYSICAL_BASE 0
#endif
#define DATA (PHYSICAL_BASE + 0x4000000ul) /* 64 MiB that processes share, beyond the kernel's own mapping */
#define MEGABYTE (0x100000 / PAGE)
#define LARGEST 64
#define TIMES 256
#define WORKING_SET 8
#define POOL 8192

u32 checks_done, checks_failed;
bool return_broken;
static word free_pages[POOL], free_count, root;
static bool copying; /* a write fault is a copy on write, and not a mistake */

void *memset(void *to, int c, word n)
{
	for (word *d = to; n >= sizeof(word); n -= sizeof(word))
		*d++ = (u8)c * (~0ul / 255);
	return to;
}

void *memcpy(void *to, const void *from, word n)
{
	const word *s = from;
	for (word *d = to; n >= sizeof(word); n -= sizeof(word))
		*d++ = *s++;
	return to;
}

word page_new(void)
{
	if (!free_count)
		arch_power_off(true);
	return free_pages[--free_count];
}

void page_drop(word page)
{
	memset(DIRECT(page), 0, PAGE);
	free_pages[free_count++] = page;
}

void want(word got, word wanted, const char *what)
{
	if (got != wanted) {
		checks_failed++;
		print("FAIL %s: %x, not %x\n", what, got, wanted);
	}
}

void timer_interrupt(struct frame *frame, bool from_user) { (void)frame, (void)from_user; }
void system_call(struct frame *frame) { (void)frame; }

static volatile word *at(word page) { return (volatile word *)(AREA + page * PAGE); }

/* Pages that processes have of their own are not given back: there are enough. An absent page is given, zeroed; a page that may not be written is copied. */
void trap(struct frame *frame, const struct fault *fault, bool from_user)
{
	word address = fault->address & -(word)PAGE;
	(void)frame, (void)from_user;
	if (fault->kind == FAULT_ABSENT && address >= AREA && address < AREA + LARGEST * MEGABYTE * PAGE) {
		arch_map(root, address, page_new(), RIGHT_WRITE | RIGHT_USER);
	} else if (fault->kind == FAULT_PROTECTION && fault->access == ACCESS_WRITE && copying) {
		word page = page_new();
		memcpy(DIRECT(page), (void *)address, PAGE);
		arch_map(root, address, page, RIGHT_WRITE | RIGHT_USER);
		arch_flush(address);
	} else {
		print("FAIL fault %d at %x, PC %x\n", fault->kind, fault->address, fault->pc);
		arch_power_off(true);
	}
}

static void begin(const char *what, word times) { print("begin %d %s\n", times, what); timer_pending(); }
static void end(void) { print("end\n"); timer_pending(); }
static void use(word next) { root = next; arch_root_switch(next); }

/* A process of so many pages of DATA, each written once. */
static word process_of(word pages)
{
	word process = arch_root_new();
	for (word i = 0; i < pages; i++)
		arch_map(process, AREA + i * PAGE, DATA + i * PAGE, RIGHT_WRITE | RIGHT_USER);
	use(process);
	for (word i = 0; i < pages; i++)
		*at(i) = i;
	return process;
}

/* The parent's pages lose their right to write, the child has the same ones. */
static word fork_of(word parent, word pages)
{
	word child = arch_root_new();
	for (word i = 0; i < pages; i++) {
		arch_map(parent, AREA + i * PAGE, DATA + i * PAGE, RIGHT_USER);
		arch_map(child, AREA + i * PAGE, DATA + i * PAGE, RIGHT_USER);
	}
	arch_flush_all();
	return child;
}

static void forks(void)
{
	for (word size = 1; size <= LARGEST; size *= 4) {
		word parent = process_of(size * MEGABYTE);
		begin(size == 1 ? "fork 1 MiB" : size == 4 ? "fork 4 MiB" : size == 16 ? "fork 16 MiB" : "fork 64 MiB", 1);
		word child = fork_of(parent, size * MEGABYTE);
		end();
		use(child);
		for (word i = 0; i < size * MEGABYTE; i += 16)
			WANT(*at(i), i);
		if (size == 4) {
			copying = true;
			begin("copy on write", TIMES);
			for (word i = 0; i < TIMES; i++)
				*at(4 * i) = i + 1;
			end();
			copying = false;
			use(parent);
			for (word i = 0; i < TIMES; i++)
				WANT(*at(4 * i), 4 * i);
			use(child);
			for (word i = 0; i < TIMES; i++)
				WANT(*at(4 * i), i + 1);
		}
		use(0);
		arch_root_drop(child);
		arch_root_drop(parent);
	}
}

static void page_faults(void)
{
	word process = arch_root_new();
	use(process);
	begin("page fault", TIMES);
	for (word i = 0; i < TIMES; i++)
		*at(i) = i;
	end();
	for (word i = 0; i < TIMES; i++)
		WANT(*at(i), i);
	begin("map and unmap", TIMES);
	for (word i = 0; i < TIMES; i++) {
		arch_map(process, AREA + (TIMES + i) * PAGE, DATA + i * PAGE, RIGHT_WRITE | RIGHT_USER);
		*at(TIMES + i) = i;
		arch_unmap(process, AREA + (TIMES + i) * PAGE);
		arch_flush(AREA + (TIMES + i) * PAGE);
	}
	end();
	begin("PTE modify, in a row", TIMES);
	for (word i = 0; i < TIMES; i++)
		arch_map(process, AREA + i * PAGE, DATA + i * PAGE, RIGHT_USER);
	arch_flush_all();
	end();
	begin("PTE modify, flush each", TIMES);
	for (word i = 0; i < TIMES; i++) {
		arch_map(process, AREA + i * PAGE, DATA + i * PAGE, RIGHT_WRITE | RIGHT_USER);
		arch_flush(AREA + i * PAGE);
		*at(i) = i;
	}
	end();
	use(0);
	arch_root_drop(process);
}

static void switches(void)
{
	word processes[2] = {process_of(WORKING_SET), process_of(WORKING_SET)};
	begin("context switch", TIMES);
	for (word i = 0; i < TIMES; i++) {
		use(processes[i & 1]);
		for (word j = 0; j < WORKING_SET; j++)
			*at(j) = i + j;
	}
	end();
	use(0);
	arch_root_drop(processes[0]);
	arch_root_drop(processes[1]);
}

static void starts(void)
{
	begin("process start and end", 16);
	for (word n = 0; n < 16; n++) {
		word process = arch_root_new();
		for (word i = 0; i < 16; i++)
			arch_map(process, AREA + i * PAGE, DATA + i * PAGE, RIGHT_USER);
		use(process);
		for (word i = 0; i < 16; i++)
			(void)*at(i);
		for (word i = 0; i < 16; i++)
			*at(512 + i) = i;
		use(0);
		arch_root_drop(process);
	}
	end();
}

void kernel_main(word boot)
{
	for (word i = 0; i < POOL; i++)
		free_pages[i] = POOL_START + (POOL - 1 - i) * PAGE;
	free_count = POOL;
	arch_start(boot);
	print("retrap memory workload\n");
	begin("nothing", 1);
	end();
	forks();
	page_faults();
	switches();
	starts();
	print("memory workload: %d failed\n", (word)checks_failed);
	arch_power_off(checks_failed != 0);
}
