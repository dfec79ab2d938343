/* User processes: address spaces of their own, system calls, demand paging, copy-on-write fork,
 * lazily switched FPU state, preemption by the timer. Everything a process leaves behind is
 * volatile or zeroed. */
#include "kernel.h"
#include "system_calls.h"

enum state { FREE, READY, WAITING, DEAD };

struct process {
	u8 fpu[512] __attribute__((aligned(16)));
	u8 stack[8192] __attribute__((aligned(16)));
	u64 root, rsp, fs_base, catch_rip, catch_rsp, code;
	struct process *awaited;
	enum state state;
	bool fpu_used;
};

#define PROCESSES 6
#define PTE_SHARED 0x400 /* software: stays one page across a fork */

static struct process processes[PROCESSES] VOLATILE_DATA;
static struct process *current, *fpu_owner;
static u64 boss_rsp VOLATILE_DATA, shared_page;
struct process_counts heap_counts;
volatile u64 switches_by_timer VOLATILE_DATA, fpu_faults VOLATILE_DATA;

static u64 *user_entry(struct process *p, u64 address)
{
	return page_entry(p->root, address, PTE_P | PTE_W | PTE_U | PTE_A);
}

/* ---- switching ---- */
static void switch_to(struct process *next)
{
	struct process *previous = current;
	if (next == previous)
		return;
	current = next;
	write_cr3(next ? next->root : PHYSICAL(kernel_pml4));
	if (next) {
		tss.rsp[0] = cpu.kernel_stack = (u64)next->stack + sizeof(next->stack);
		wrmsr(MSR_FS_BASE, next->fs_base);
		if (next == fpu_owner)
			clts();
		else
			write_cr0(CR0_VALUE | CR0_TS);
	}
	switch_stacks(previous ? &previous->rsp : &boss_rsp, next ? next->rsp : boss_rsp);
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
static struct process *process_new(const struct frame *start)
{
	for (u32 i = 0; i < PROCESSES; i++) {
		struct process *p = &processes[i];
		if (p->state != FREE)
			continue;
		memset(p, 0, sizeof(*p));
		p->root = root_new();
		p->state = READY;
		struct frame *frame = (struct frame *)(p->stack + sizeof(p->stack)) - 1;
		*frame = *start;
		u64 *stack = (u64 *)frame;
		*--stack = (u64)trap_return; /* where switch_stacks returns to, below six zeros */
		p->rsp = (u64)(stack - 6);
		return p;
	}
	return NULL;
}

void run_program(u32 program, u32 argument)
{
	struct frame start = {.rip = USER_CODE, .cs = USER_CS, .rflags = 2 | FLAG_IF, .rsp = STACK_TOP, .ss = USER_DS,
			      .rdi = program, .rsi = argument};
	struct process *p = process_new(&start);
	for (u64 offset = 0; offset < (u64)(user_image_end - user_image); offset += 4096) {
		u64 page = page_new();
		memcpy(direct(page), user_image + offset, 4096);
		*user_entry(p, USER_CODE + offset) = page | PTE_P | PTE_U;
	}
	serialise(); /* code was written through another address */
}

static void process_exit(u64 code)
{
	current->code = code;
	current->state = DEAD;
	if (fpu_owner == current)
		fpu_owner = NULL;
	for (u32 i = 0; i < PROCESSES; i++) {
		if (processes[i].state == WAITING && processes[i].awaited == current) {
			processes[i].state = READY;
			((struct frame *)(processes[i].stack + sizeof(processes[i].stack)) - 1)->rax = code;
		}
	}
	write_cr3(PHYSICAL(kernel_pml4));
	root_drop(current->root);
	switch_to(next_ready());
}

void run_processes(void)
{
	timer_start(1000);
	for (struct process *p; (p = next_ready());)
		switch_to(p);
	timer_stop();
	load_stack_segment(); /* null when the last way in was an interrupt from user mode */
	write_cr0(CR0_VALUE);
	tss.rsp[0] = cpu.kernel_stack = (u64)trap_stack + sizeof(trap_stack);
	wrmsr(MSR_FS_BASE, 0);
	if (shared_page)
		page_drop(shared_page);
	shared_page = 0;
}

u64 exit_code(u32 slot)
{
	return processes[slot].state == DEAD ? processes[slot].code : ~0ul;
}

void processes_finish(void)
{
	for (u32 i = 0; i < PROCESSES; i++)
		processes[i].state = FREE;
	heap_counts = (struct process_counts){0, 0, 0};
}

/* ---- FPU ---- */
static void fpu_save(void)
{
	clts();
	if (fpu_owner)
		asm volatile("fxsave64 %0" : "=m"(fpu_owner->fpu));
	fpu_owner = NULL;
}

static void fpu_load(void)
{
	static const u32 mxcsr = 0x1f80;
	fpu_save();
	if (current->fpu_used)
		asm volatile("fxrstor64 %0" : : "m"(current->fpu));
	else
		asm volatile("fninit; ldmxcsr %0" : : "m"(mxcsr));
	current->fpu_used = true;
	fpu_owner = current;
	fpu_faults++;
}

/* ---- memory ---- */
static bool is_heap(u64 a) { return a >= HEAP && a < HEAP + HEAP_BYTES; }
static bool is_stack(u64 a) { return a >= STACK_BOTTOM && a < STACK_TOP; }

static bool break_sharing(u64 address, u64 *entry)
{
	u64 page = *entry & PTE_ADDRESS;
	if (page_references(page) > 1) {
		u64 copy = page_new();
		memcpy(direct(copy), direct(page), 4096);
		page_drop(page);
		page = copy;
		heap_counts.copies += is_heap(address);
	} else {
		heap_counts.reuses += is_heap(address);
	}
	*entry = page | PTE_P | PTE_W | PTE_U | PTE_NX;
	invlpg(address);
	return true;
}

static bool page_fault(u64 address, u64 error)
{
	u64 *entry = is_heap(address) || is_stack(address) ? user_entry(current, address) : NULL;
	if (!entry)
		return false;
	if (!(error & 1) && !*entry) {
		*entry = page_new() | PTE_P | PTE_W | PTE_U | PTE_NX;
		heap_counts.demand += is_heap(address);
		return true;
	}
	return (error & 3) == 3 && (*entry & PTE_COW) && break_sharing(address, entry);
}

static void share_page(struct process *child, u64 address, u64 *entry)
{
	if (!(*entry & PTE_SHARED) && (*entry & PTE_W))
		*entry = (*entry & ~(u64)PTE_W) | PTE_COW;
	*user_entry(child, address) = *entry;
	page_share(*entry & PTE_ADDRESS);
}

static void share_range(struct process *child, u64 start, u64 bytes)
{
	for (u64 a = start; a < start + bytes; a += 4096) {
		u64 *entry = page_entry(current->root, a, 0);
		if (entry && (*entry & PTE_P))
			share_page(child, a, entry);
	}
}

static u64 fork(const struct frame *frame)
{
	struct frame start = *frame;
	start.rax = 0;
	struct process *child = process_new(&start);
	share_range(child, USER_CODE, 16 * 4096);
	share_range(child, HEAP, HEAP_BYTES);
	share_range(child, SHARED, 4096);
	share_range(child, STACK_BOTTOM, STACK_TOP - STACK_BOTTOM);
	write_cr3(read_cr3()); /* rights were taken away */
	if (fpu_owner == current) {
		fpu_save();
		write_cr0(CR0_VALUE | CR0_TS);
	}
	memcpy(child->fpu, current->fpu, sizeof(child->fpu));
	child->fpu_used = current->fpu_used;
	child->fs_base = current->fs_base;
	return child - processes;
}

/* ---- faults of user programs ---- */
static void user_fault(struct frame *frame, u64 cr2)
{
	if (!current->catch_rip) {
		print("FAIL user: exception %d, error %x, RIP %x, CR2 %x\n", frame->vector, frame->error, frame->rip, cr2);
		checks_failed++;
		process_exit(~0ul);
	}
	frame->rdi = frame->vector;
	frame->rsi = frame->error;
	frame->rdx = cr2;
	frame->r8 = frame->rip;
	frame->r9 = frame->cs;
	frame->rip = current->catch_rip;
	frame->rsp = current->catch_rsp;
	frame->rflags = 2 | FLAG_IF;
	frame->cs = USER_CS;
	frame->ss = USER_DS;
	current->catch_rip = 0;
}

bool process_fault(struct frame *frame, u64 cr2)
{
	if (!current)
		return false;
	if (frame->vector == 14 && page_fault(cr2, frame->error))
		return true;
	if (!(frame->cs & 3))
		return false;
	if (frame->vector == 7)
		fpu_load();
	else
		user_fault(frame, cr2);
	return true;
}

/* ---- system calls ---- */
static u64 rights(u64 wanted)
{
	return PTE_P | PTE_U | (wanted & RIGHT_WRITE ? PTE_W : 0) | (wanted & RIGHT_EXECUTE ? 0 : PTE_NX);
}

static u64 map(u64 address, u64 page, u64 wanted)
{
	*user_entry(current, address) = page | rights(wanted);
	invlpg(address);
	return 0;
}

static u64 unmap(u64 address)
{
	u64 *entry = user_entry(current, address), page = *entry & PTE_ADDRESS;
	*entry = 0;
	invlpg(address);
	page_drop(page);
	return 0;
}

static u64 alias(u64 address, u64 existing, u64 wanted)
{
	u64 page = *user_entry(current, existing) & PTE_ADDRESS;
	page_share(page);
	return map(address, page, wanted);
}

static u64 share(void)
{
	if (!shared_page)
		shared_page = page_new();
	page_share(shared_page);
	*user_entry(current, SHARED) = shared_page | PTE_P | PTE_W | PTE_U | PTE_NX | PTE_SHARED;
	return 0;
}

static u64 wait(u64 slot, struct frame *frame)
{
	struct process *p = &processes[slot % PROCESSES];
	if (p->state != DEAD) {
		current->awaited = p;
		current->state = WAITING;
		switch_to(next_ready());
		p->state = FREE;
		return frame->rax; /* set by process_exit */
	}
	p->state = FREE;
	return p->code;
}

static void set_ports(bool allowed)
{
	set_io_map(allowed ? 104 : sizeof(tss));
	tss.io[0x3ff / 8] = allowed ? 0x7f : 0xff;
}

static u64 query(u64 what, const struct frame *frame)
{
	switch (what) {
	case QUERY_DEMAND: return heap_counts.demand;
	case QUERY_COPIES: return heap_counts.copies;
	case QUERY_REUSES: return heap_counts.reuses;
	case QUERY_GDT: return (u64)gdt;
	case QUERY_IDT: return (u64)idt;
	case QUERY_CR0: return read_cr0();
	case QUERY_ENTRY_FLAGS: return read_flags();
	case QUERY_RETURN_RIP: return frame->rip;
	case QUERY_RETURN_FLAGS: return frame->rflags;
	case QUERY_ROUNDS: return rounds;
	}
	return ~0ul;
}

static u64 perform(u64 number, struct frame *f)
{
	switch (number) {
	case SYS_EXIT: process_exit(f->rdi); break;
	case SYS_REPORT: report((const char *)f->rdi, f->rsi, (const char *)f->rdx, f->r10, f->r8); break;
	case SYS_YIELD: f->rax = 0; switch_to(next_ready()); break;
	case SYS_FORK: return fork(f);
	case SYS_WAIT: return wait(f->rdi, f);
	case SYS_MAP: return map(f->rdi, page_new(), f->rsi);
	case SYS_PROTECT: return map(f->rdi, *user_entry(current, f->rdi) & PTE_ADDRESS, f->rsi);
	case SYS_ALIAS: return alias(f->rdi, f->rsi, f->rdx);
	case SYS_UNMAP: return unmap(f->rdi);
	case SYS_CATCH: current->catch_rip = f->rdi; current->catch_rsp = f->rsi; break;
	case SYS_QUERY: return query(f->rdi, f);
	case SYS_SET_FS: current->fs_base = f->rdi; wrmsr(MSR_FS_BASE, f->rdi); break;
	case SYS_ECHO: return 3 * f->rdi + f->rsi;
	case SYS_IO_MAP: set_ports(f->rdi); break;
	case SYS_STORE: *(volatile u64 *)f->rdi = f->rsi; break;
	case SYS_TIME_STAMP_DISABLE: write_cr4(CR4_VALUE | (f->rdi ? CR4_TSD : 0)); break;
	case SYS_SET_IOPL: f->rflags = (f->rflags & ~0x3000ul) | f->rdi << 12; break;
	case SYS_CALLER_CS: return f->cs;
	case SYS_SHARE: return share();
	case SYS_PORT_READ: return inb(0x3ff);
	}
	return 0;
}

void system_call(struct frame *frame)
{
	frame->rax = perform(frame->rax, frame);
}
