/* The para-virtual architecture: what every instruction set's port shares. Interrupts are a word in the page
 * shared with the hypervisor; the timer, the console, entries and returns are calls and frames of retrap.h. An
 * instruction set adds (samples/<isa>/pv): arch.h, the form of its page tables (arch.c), and the boot (entry.S). */
#include "kernel.h"
#include "pv.h"

static u8 trap_stack[8192] VOLATILE_DATA __attribute__((aligned(16)));

/* ---- the machine: a line is one call ---- */
static char line[128] VOLATILE_DATA;
static u32 line_length VOLATILE_DATA;

void arch_put_char(char c)
{
	line[line_length++] = c;
	if (c != '\n' && line_length < sizeof(line))
		return;
	retrap_console_write((word)line, line_length);
	line_length = 0;
}

void arch_power_off(bool failed)
{
	retrap_console_write((word)line, line_length);
	retrap_shutdown(failed);
	for (;;)
		;
}

/* ---- interrupts ---- */
void interrupts_on(void) { retrap_interrupts_on(); }
void interrupts_off(void) { retrap_interrupts_off(); }
bool interrupts_enabled(void) { return retrap_interrupts_enabled(); }

word interrupts_save(void)
{
	word enabled = retrap_interrupts_enabled();
	retrap_interrupts_off();
	return enabled;
}

void interrupts_restore(word saved)
{
	if (saved)
		retrap_interrupts_on();
	else
		retrap_interrupts_off();
}

void interrupts_wait(void)
{
	retrap_block();
	retrap_interrupts_on(); /* lets in what it waited for */
	retrap_interrupts_off();
}

void interrupts_million_pairs(word pairs, volatile word *inside)
{
	do {
		retrap_interrupts_off();
		*inside = 1;
		*inside = 0;
		retrap_interrupts_on();
	} while (--pairs);
}

void timer_stop(void) { retrap_timer_set(0, 0); }
void timer_start(word hertz) { retrap_timer_set(1000000 / hertz, 1); }
void timer_once(word microseconds) { retrap_timer_set(microseconds, 0); }
bool timer_pending(void) { return RETRAP_SHARED_WORD(RETRAP_EVENTS) >> RETRAP_PORT_TIMER & 1; }

/* ---- entries: each handler is a function of a frame; to return from it is RETURN ---- */
static struct fault describe(const struct frame *frame)
{
	static const u8 kinds[RETRAP_TRAPS] = {
		[RETRAP_TRAP_UNDEFINED] = FAULT_UNDEFINED,	   [RETRAP_TRAP_PRIVILEGED] = FAULT_PRIVILEGED,
		[RETRAP_TRAP_BREAKPOINT] = FAULT_BREAKPOINT,	   [RETRAP_TRAP_FLOATING_POINT] = FAULT_FLOATING_POINT,
		[RETRAP_TRAP_OTHER] = FAULT_OTHER,
	};
	struct fault fault = {kinds[frame->r.trap], 0, 0, PV_PC(frame)};
	if (frame->r.trap == RETRAP_TRAP_PAGE_FAULT) {
		fault.kind = frame->r.detail & RETRAP_ACCESS_PRESENT ? FAULT_PROTECTION : FAULT_ABSENT;
		fault.access = frame->r.detail & 3;
		fault.address = frame->r.address;
	}
	return fault;
}

static HANDLER void on_fault(struct frame *frame)
{
	if (frame->r.trap == RETRAP_TRAP_PAGE_FAULT && pv_drain())
		return; /* what was queued may be what was missed */
	struct fault fault = describe(frame);
	trap(frame, &fault, frame->r.state & RETRAP_STATE_USER);
}

static HANDLER void on_event(struct frame *frame)
{
	if (frame->r.detail >> RETRAP_PORT_TIMER & 1)
		timer_interrupt(frame, frame->r.state & RETRAP_STATE_USER);
}

static HANDLER void on_system_call(struct frame *frame)
{
	if (!pv_system_call(frame))
		system_call(frame);
}

void pv_start(void)
{
	static const word handlers[RETRAP_TRAPS] = {
		(word)on_fault, (word)on_fault,	      (word)on_fault, (word)on_fault,
		(word)on_fault, (word)on_system_call, (word)on_event, (word)on_fault,
	};
	retrap_interrupts_off();
	retrap_set_trap_table((word)handlers, RETRAP_TRAPS);
	retrap_stack_switch((word)trap_stack + sizeof(trap_stack));
}

/* ---- page-table entries: queued, and stored many at a time when it matters ---- */
static struct retrap_update queue[64] VOLATILE_DATA;
static struct retrap_element both[2] VOLATILE_DATA;
static word queued VOLATILE_DATA, root_in_use;

bool pv_drain(void)
{
	word count = queued;
	queued = 0;
	if (count && retrap_pte_update((word)queue, count) != count) {
		print("FAIL memory: a page-table entry was refused\n");
		checks_failed++;
		finish();
	}
	return count != 0;
}

void pv_set_entry(word pointer, retrap_entry value)
{
	if (queued == LENGTH(queue))
		pv_drain();
	queue[queued++] = (struct retrap_update){pointer, value};
}

void pv_set_entry_now(word pointer, retrap_entry value)
{
	pv_set_entry(pointer, value);
	pv_drain();
}

/* The queue and a flush in one call. */
static void drain_and(word call, word argument)
{
	both[0] = (struct retrap_element){RETRAP_CALL_PTE_UPDATE, 0, {(word)queue, queued, 0, 0}};
	both[1] = (struct retrap_element){call, 0, {argument, 0, 0, 0}};
	if (!queued)
		retrap_call(call, argument, 0, 0, 0);
	else if (retrap_multicall((word)both, 2) != 2 || both[0].result != queued)
		pv_drain(); /* which says so */
	queued = 0;
}

void arch_flush(word address) { drain_and(RETRAP_CALL_FLUSH_PAGE, address); }
void arch_flush_all(void) { drain_and(RETRAP_CALL_FLUSH_ALL, 0); }
word arch_root_read(void) { return root_in_use; }

void arch_root_switch(word root)
{
	root_in_use = root;
	drain_and(RETRAP_CALL_NEW_BASE, root ? root : pv_kernel_root());
}

/* ---- processes ---- */
void arch_enter_process(word stack_top) { retrap_stack_switch(stack_top); }
void thread_register_set(word value) { retrap_thread_register(value); }

void frame_start(struct frame *frame, word pc, word stack, word first, word second)
{
	memset(frame, 0, sizeof(*frame));
	frame->r.pc = pc;
	frame->r.state = RETRAP_STATE_USER | RETRAP_STATE_INTERRUPTS;
	frame->r.PV_STACK = stack;
	frame->r.PV_FIRST = first;
	frame->r.PV_SECOND = second;
}

word frame_number(const struct frame *f) { return f->r.PV_NUMBER; }
void frame_result(struct frame *f, word value) { f->r.PV_RESULT = value; }
word frame_get_result(const struct frame *f) { return f->r.PV_RESULT; }
word frame_pc(const struct frame *f) { return f->r.pc; }
bool frame_from_kernel_would_interrupt(const struct frame *f) { return f->r.state & RETRAP_STATE_INTERRUPTS; }

void frame_catch(struct frame *f, word pc, word stack, const struct fault *fault)
{
	frame_start(f, pc, stack, fault->kind, fault->access);
	f->r.PV_THIRD = fault->address;
	f->r.PV_FOURTH = fault->pc;
}

/* ---- floating point: a word, which the processor follows when it must ---- */
void fpu_enable(void) { retrap_floating_point(1); }
void fpu_disable(void) { retrap_floating_point(0); }

/* ---- code: the sequences of entry.S, each a function that can be copied anywhere ---- */
extern const struct { const u8 *start, *end; word result; } pv_variants[], pv_variants_end[];

word code_variants(void) { return pv_variants_end - pv_variants; }
bool code_variant_right(word which, word result) { return result == pv_variants[which].result; }

word code_variant(void *to, word which)
{
	word bytes = pv_variants[which].end - pv_variants[which].start;
	memcpy(to, pv_variants[which].start, bytes);
	return bytes;
}

void sync_code(word address, word bytes) { pv_code_changed(address, bytes); }

/* ---- the checks of what is sensitive: here of what stands in its place ---- */
static NOINLINE void shared_words(void)
{
	static const word numbers[] = {RETRAP_MASK, RETRAP_FPU};
	for (u32 i = 0; i < LENGTH(numbers); i++) {
		RETRAP_SHARED_WORD(numbers[i]) = 0x55;
		WANT(RETRAP_SHARED_WORD(numbers[i]), 0x55);
		RETRAP_SHARED_WORD(numbers[i]) = 0;
	}
}

void arch_check_mode(void)
{
	WANT(retrap_version(), RETRAP_VERSION);
	WANT(catch_fault(arch_raise_breakpoint, 0), true); /* and not as user code */
}

void arch_check_status_word(void)
{
	shared_words();
	RETRAP_SHARED_WORD(RETRAP_INTERRUPTS) = RETRAP_INTERRUPTS_ON;
	WANT(interrupts_enabled(), true);
	RETRAP_SHARED_WORD(RETRAP_INTERRUPTS) = RETRAP_INTERRUPTS_OFF;
	WANT(interrupts_enabled(), false);
}

void arch_check_system_registers(void)
{
	unsigned long long first = 0, second = 0;
	WANT(retrap_call(4711, 0, 0, 0, 0), -RETRAP_ERROR_UNKNOWN_CALL);
	WANT(retrap_event_send(RETRAP_PORT_TIMER), -RETRAP_ERROR_INVALID);
	WANT(retrap_set_trap_table(0, RETRAP_TRAPS + 1), -RETRAP_ERROR_TOO_MUCH);
	WANT(retrap_new_base(pv_kernel_root() + 4, 0), -RETRAP_ERROR_INVALID);
	WANT(retrap_time((word)&first), 0);
	WANT(retrap_time((word)&second), 0);
	WANT(first <= second, true);
}

/* Pointers that a call is given: what the kernel itself could not read or write is refused. */
void arch_check_user_access(void)
{
	WANT(retrap_console_write(SCRATCH_AREA, 1), -RETRAP_ERROR_BAD_ADDRESS);
	WANT(retrap_console_write(RETRAP_SHARED, 1), -RETRAP_ERROR_BAD_ADDRESS);
	WANT(retrap_console_write(~0ul, 2), -RETRAP_ERROR_BAD_ADDRESS);
	WANT(retrap_time(SCRATCH_AREA), -RETRAP_ERROR_BAD_ADDRESS);
	WANT(retrap_return(SCRATCH_AREA), -RETRAP_ERROR_BAD_ADDRESS);
}

static void send_to_myself(word unused)
{
	(void)unused;
	retrap_event_send(RETRAP_PORT_OWN);
	retrap_interrupts_on();
	retrap_interrupts_off();
}

void arch_check_return(void)
{
	return_broken = catch_fault(send_to_myself, 0);
	WANT(return_broken, false);
	WANT(RETRAP_SHARED_WORD(RETRAP_EVENTS), 0);
}
