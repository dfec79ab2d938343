/* User processes: address spaces of their own, system calls, demand paging, copy-on-write fork, FPU
 * state switched lazily where the processor says when it is used, preemption by the timer. What a
 * process has mapped is kept in a list of the kernel's own, so that no bit of a page table is needed
 * for it. Everything a process leaves behind is volatile or zeroed. */
#include "kernel.h"

enum state { FREE, READY, WAITING, DEAD };

struct mapping {
	word address, page;
	u8 rights; /* as the program has them; 0xff: none here */
	bool shared, copied; /* stays one page across a fork; is written on a copy */
};

#define PROCESSES 6
#define MAPPINGS 320

struct process {
	u8 fpu[FPU_BYTES] __attribute__((aligned(16)));
	u8 stack[8192] __attribute__((aligned(16)));
	struct mapping mappings[MAPPINGS];
	word root, kernel_stack, thread, catch_pc, catch_stack, code;
	struct process *awaited;
	enum state state;
	u32 used; /* of mappings */
	bool fpu_used;
};

static struct process processes[PROCESSES] VOLATILE_DATA;
static struct process *current, *fpu_owner;
static word boss_stack VOLATILE_DATA, shared_pages[SHARED_PAGES];
static struct { u32 demand, copies, reuses; } heap_counts;
volatile word switches_by_timer VOLATILE_DATA, fpu_switches VOLATILE_DATA;

static struct frame *frame_of(struct process *p)
{
	return (struct frame *)(p->stack + sizeof(p->stack) - FRAME_BYTES);
}

/* ---- what is mapped ---- */
static struct mapping *find(struct process *p, word address)
{
	for (u32 i = 0; i < p->used; i++)
		if (p->mappings[i].address == address)
			return &p->mappings[i];
	return NULL;
}

static struct mapping *set_mapping(struct process *p, word address, word page, word rights)
{
	struct mapping *m = find(p, address);
	if (!m) {
		if (p->used == MAPPINGS) {
			print("FAIL memory: a process maps too much\n");
			checks_failed++;
			finish();
		}
		m = &p->mappings[p->used++];
	}
	*m = (struct mapping){address, page, rights, false, false};
	arch_map(p->root, address, page, rights | RIGHT_USER);
	return m;
}

static void drop_mapping(struct process *p, word address)
{
	struct mapping *m = find(p, address);
	if (!m)
		return;
	word page = m->page;
	*m = p->mappings[--p->used];
	arch_unmap(p->root, address);
	arch_flush(address);
	page_drop(page);
}

/* ---- switching ---- */
static void fpu_release(void)
{
	if (fpu_owner) {
		fpu_enable();
		fpu_save(fpu_owner->fpu);
	}
	fpu_owner = NULL;
}

static void fpu_give(struct process *p)
{
	fpu_release();
	fpu_enable();
	if (p->fpu_used)
		fpu_load(p->fpu);
	else
		fpu_reset();
	p->fpu_used = true;
	fpu_owner = p;
	fpu_switches++;
}

static void switch_to(struct process *next)
{
	struct process *previous = current;
	if (next == previous)
		return;
	current = next;
	arch_root_switch(next ? next->root : 0);
	if (next) {
		arch_enter_process((word)next->stack + sizeof(next->stack));
		thread_register_set(next->thread);
		if (next == fpu_owner)
			fpu_enable();
		else if (LAZY_FPU)
			fpu_disable();
		else
			fpu_give(next);
	}
	switch_stacks(previous ? &previous->kernel_stack : &boss_stack, next ? next->kernel_stack : boss_stack);
}

/* Round robin from the one after the current; the boss when none is ready. */
static struct process *next_ready(void)
{
	u32 start = current ? current - processes + 1 : 0;
	for (u32 i = 0; i < PROCESSES; i++)
		if (processes[(start + i) % PROCESSES].state == READY)
			return &processes[(start + i) % PROCESSES];
	return NULL;
}

void preempt(void)
{
	struct process *next = next_ready();
	if (!current || !next || next == current)
		return;
	switches_by_timer++;
	switch_to(next);
}

/* ---- life and death ---- */
static struct process *process_new(void)
{
	for (u32 i = 0; i < PROCESSES; i++) {
		struct process *p = &processes[i];
		if (p->state != FREE)
			continue;
		memset(p, 0, sizeof(*p));
		p->root = arch_root_new();
		p->state = READY;
		p->kernel_stack = stack_for(frame_of(p));
		return p;
	}
	print("FAIL processes: too many\n");
	checks_failed++;
	finish();
}

void run_program(word program, word argument)
{
	struct process *p = process_new();
	frame_start(frame_of(p), USER_CODE, STACK_TOP, program, argument);
	for (word offset = 0; offset < (word)(user_image_end - user_image); offset += PAGE) {
		word page = page_new();
		memcpy(DIRECT(page), user_image + offset, PAGE);
		sync_code((word)DIRECT(page), PAGE);
		set_mapping(p, USER_CODE + offset, page, RIGHT_EXECUTE);
	}
}

static void process_exit(word code)
{
	struct process *p = current;
	p->code = code;
	p->state = DEAD;
	if (fpu_owner == p)
		fpu_owner = NULL;
	for (u32 i = 0; i < PROCESSES; i++) {
		if (processes[i].state == WAITING && processes[i].awaited == p) {
			processes[i].state = READY;
			frame_result(frame_of(&processes[i]), code);
		}
	}
	arch_root_switch(0);
	while (p->used) {
		word page = p->mappings[--p->used].page;
		arch_unmap(p->root, p->mappings[p->used].address);
		page_drop(page);
	}
	arch_root_drop(p->root);
	arch_flush_all();
	switch_to(next_ready());
}

void run_processes(void)
{
	timer_start(1000);
	for (struct process *p; (p = next_ready());)
		switch_to(p);
	timer_stop();
	fpu_owner = NULL;
	fpu_disable();
	thread_register_set(0);
	for (u32 i = 0; i < SHARED_PAGES; i++) {
		if (shared_pages[i])
			page_drop(shared_pages[i]);
		shared_pages[i] = 0;
	}
}

word exit_code(word slot)
{
	return processes[slot].state == DEAD ? processes[slot].code : ~0ul;
}

void processes_finish(void)
{
	for (u32 i = 0; i < PROCESSES; i++)
		processes[i].state = FREE;
	memset(&heap_counts, 0, sizeof(heap_counts));
}

/* ---- memory ---- */
static bool is_heap(word a) { return a >= HEAP && a < HEAP + HEAP_BYTES; }
static bool is_stack(word a) { return a >= STACK_BOTTOM && a < STACK_TOP; }

static bool break_sharing(struct mapping *m)
{
	if (page_references(m->page) > 1) {
		word copy = page_new();
		memcpy(DIRECT(copy), DIRECT(m->page), PAGE);
		page_drop(m->page);
		m->page = copy;
		heap_counts.copies += is_heap(m->address);
	} else {
		heap_counts.reuses += is_heap(m->address);
	}
	m->copied = false;
	arch_map(current->root, m->address, m->page, m->rights | RIGHT_USER);
	arch_flush(m->address);
	return true;
}

static bool page_fault(const struct fault *fault)
{
	word address = fault->address & -(word)PAGE;
	struct mapping *m = find(current, address);
	if (fault->kind == FAULT_ABSENT && !m && (is_heap(address) || is_stack(address))) {
		set_mapping(current, address, page_new(), RIGHT_WRITE);
		heap_counts.demand += is_heap(address);
		return true;
	}
	return fault->kind == FAULT_PROTECTION && fault->access == ACCESS_WRITE && m && m->copied && break_sharing(m);
}

static void share_mapping(struct process *child, struct mapping *m)
{
	struct mapping *other;
	if (!m->shared && (m->rights & RIGHT_WRITE)) {
		m->copied = true;
		arch_map(current->root, m->address, m->page, (m->rights & ~RIGHT_WRITE) | RIGHT_USER);
	}
	page_share(m->page);
	other = set_mapping(child, m->address, m->page, m->copied ? m->rights & ~RIGHT_WRITE : m->rights);
	*other = *m;
}

static word fork(const struct frame *frame)
{
	struct process *child = process_new();
	memcpy(frame_of(child), frame, FRAME_BYTES);
	frame_result(frame_of(child), 0);
	for (u32 i = 0; i < current->used; i++)
		share_mapping(child, &current->mappings[i]);
	arch_flush_all(); /* rights were taken away */
	if (fpu_owner == current) {
		fpu_save(current->fpu);
		if (LAZY_FPU) {
			fpu_owner = NULL;
			fpu_disable();
		}
	}
	memcpy(child->fpu, current->fpu, FPU_BYTES);
	child->fpu_used = current->fpu_used;
	child->thread = current->thread;
	return child - processes;
}

/* ---- faults of user programs ---- */
static void user_fault(struct frame *frame, const struct fault *fault)
{
	if (!current->catch_pc) {
		print("FAIL user: fault %d, access %d, address %x, PC %x\n", fault->kind, fault->access, fault->address,
		      fault->pc);
		checks_failed++;
		process_exit(~0ul);
	}
	frame_catch(frame, current->catch_pc, current->catch_stack, fault);
	current->catch_pc = 0;
}

bool process_fault(struct frame *frame, const struct fault *fault, bool from_user)
{
	if (!current)
		return false;
	if (page_fault(fault))
		return true;
	if (!from_user)
		return false;
	if (LAZY_FPU && fault->kind == FAULT_FLOATING_POINT && fpu_owner != current)
		fpu_give(current);
	else
		user_fault(frame, fault);
	return true;
}

/* ---- system calls ---- */
static word map(word address, word page, word rights)
{
	set_mapping(current, address, page, rights);
	arch_flush(address);
	return 0;
}

static word protect(word address, word rights)
{
	struct mapping *m = find(current, address);
	bool shared = m && m->shared;
	if (!m)
		return ~0ul;
	m = set_mapping(current, address, m->page, rights);
	m->shared = shared;
	arch_flush(address);
	return 0;
}

static word alias(word address, word existing, word rights)
{
	struct mapping *m = find(current, existing);
	if (!m)
		return ~0ul;
	page_share(m->page);
	return map(address, m->page, rights);
}

static word share(word address, word rights, word number)
{
	if (number >= SHARED_PAGES)
		return ~0ul;
	if (!shared_pages[number])
		shared_pages[number] = page_new();
	page_share(shared_pages[number]);
	struct mapping *m = set_mapping(current, address, shared_pages[number], rights);
	m->shared = true;
	arch_flush(address);
	return 0;
}

static word wait(word slot, struct frame *frame)
{
	struct process *p = &processes[slot % PROCESSES];
	if (p->state != DEAD) {
		current->awaited = p;
		current->state = WAITING;
		switch_to(next_ready());
		p->state = FREE;
		return frame_get_result(frame); /* set by process_exit */
	}
	p->state = FREE;
	return p->code;
}

static word query(word what, const struct frame *frame)
{
	switch (what) {
	case QUERY_DEMAND: return heap_counts.demand;
	case QUERY_COPIES: return heap_counts.copies;
	case QUERY_REUSES: return heap_counts.reuses;
	case QUERY_RETURN_PC: return frame_pc(frame);
	case QUERY_KERNEL_PAGE: return (word)&heap_counts;
	case QUERY_THREAD: return current->thread;
	case QUERY_ROUNDS: return rounds;
	}
	return ~0ul;
}

static word perform(struct frame *f)
{
	word a = frame_argument(f, 0), b = frame_argument(f, 1), c = frame_argument(f, 2);
	switch (frame_number(f)) {
	case SYS_EXIT: process_exit(a); break;
	case SYS_REPORT: report((const char *)a, b, (const char *)c, frame_argument(f, 3), frame_argument(f, 4)); break;
	case SYS_YIELD: frame_result(f, 0); switch_to(next_ready()); break;
	case SYS_FORK: return fork(f);
	case SYS_WAIT: return wait(a, f);
	case SYS_MAP: return map(a, page_new(), b);
	case SYS_PROTECT: return protect(a, b);
	case SYS_ALIAS: return alias(a, b, c);
	case SYS_UNMAP: drop_mapping(current, a); break;
	case SYS_CATCH: current->catch_pc = a; current->catch_stack = b; break;
	case SYS_QUERY: return query(a, f);
	case SYS_SET_THREAD: current->thread = a; thread_register_set(a); break;
	case SYS_ECHO: return 3 * a + b;
	case SYS_STORE: *(volatile word *)a = b; break;
	case SYS_SHARE: return share(a, b, c);
	default: return ~0ul;
	}
	return 0;
}

void system_call(struct frame *frame)
{
	frame_result(frame, perform(frame));
}
