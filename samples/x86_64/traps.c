/* Descriptor tables, exceptions and the timer. Descriptors have their accessed bit set from the
 * start, so that loading a segment changes no memory. */
#include "kernel.h"

#define DESCRIPTOR(base, limit, access, flags) \
	((limit) & 0xfffful) | ((base) & 0xfffffful) << 16 | (access##ul) << 40 | ((limit) >> 16 & 0xful) << 48 | \
		(flags##ul) << 52 | ((base) >> 24 & 0xfful) << 56

u64 gdt[GDT_BYTES / 8] = {
	0,
	DESCRIPTOR(0ul, 0xffffful, 0x9b, 0xc),                  /* 0x08 32-bit kernel code, unused */
	[KERNEL_CS / 8] = DESCRIPTOR(0ul, 0xffffful, 0x9b, 0xa), /* as Linux has them */
	[KERNEL_DS / 8] = DESCRIPTOR(0ul, 0xffffful, 0x93, 0xc),
	[USER32_CS / 8] = DESCRIPTOR(0ul, 0xffffful, 0xfb, 0xc),
	[USER_DS / 8] = DESCRIPTOR(0ul, 0xffffful, 0xf3, 0xc),
	[USER_CS / 8] = DESCRIPTOR(0ul, 0xffffful, 0xfb, 0xa),
	[ABSENT_SELECTOR / 8] = DESCRIPTOR(0ul, 0xffffful, 0x13, 0xc),
};
u64 ldt[2] = {
	DESCRIPTOR(0x500000ul, 0xffffful, 0xf3, 0xc), /* selector 4: data with a base of its own */
	0,
};
u64 idt[512] __attribute__((aligned(16)));
struct tss tss __attribute__((aligned(16)));
struct cpu cpu;
struct caught caught VOLATILE_DATA;
u64 catch_rsp;
volatile u64 ticks VOLATILE_DATA;
volatile u64 interrupted_rip VOLATILE_DATA; /* where the last timer interrupt arrived */
void (*trap_hook[256])(struct frame *);
static u8 fault_stack[4096] VOLATILE_DATA __attribute__((aligned(16)));
u8 trap_stack[TRAP_STACK_BYTES] VOLATILE_DATA __attribute__((aligned(16))); /* from user mode, without a process */

void set_gate(u32 vector, u64 handler, u32 type, u32 dpl, u32 ist)
{
	idt[2 * vector] = (handler & 0xffff) | (u64)KERNEL_CS << 16 | (u64)ist << 32 | (u64)(0x80 | dpl << 5 | type) << 40 |
		(handler >> 16 & 0xffff) << 48;
	idt[2 * vector + 1] = handler >> 32;
}

static void set_system_descriptor(u32 selector, u64 base, u64 limit, u64 type)
{
	gdt[selector / 8] = (limit & 0xffff) | (base & 0xffffff) << 16 | (0x80 | type) << 40 | (base >> 24 & 0xff) << 56;
	gdt[selector / 8 + 1] = base >> 32;
}

void set_io_map(u16 offset)
{
	tss.io_map = offset;
}

void reload_tss(void)
{
	set_system_descriptor(TSS_SELECTOR, (u64)&tss, sizeof(tss) - 1, 9); /* available; LTR makes it busy */
	asm volatile("ltr %w0" : : "r"(TSS_SELECTOR) : "memory");
}

static void pic_start(void)
{
	outb(0x20, 0x11);
	outb(0xa0, 0x11);
	outb(0x21, 0x20); /* vectors 0x20.. */
	outb(0xa1, 0x28);
	outb(0x21, 4);
	outb(0xa1, 2);
	outb(0x21, 1);
	outb(0xa1, 1);
	outb(0x21, 0xff); /* all masked */
	outb(0xa1, 0xff);
}

void traps_start(void)
{
	for (u32 v = 0; v < 256; v++)
		set_gate(v, (u64)vector_stubs + 16 * v, 14, v == 3 || v == 4 || v == 0x80, v == 8 ? 1 : 0);
	for (u32 v = 3; v <= 4; v++)
		set_gate(v, (u64)vector_stubs + 16 * v, 14, 3, 0);
	set_gate(0x80, (u64)vector_stubs + 16 * 0x80, 14, 3, 0);
	tss.rsp[0] = (u64)trap_stack + sizeof(trap_stack);
	tss.ist[0] = (u64)fault_stack + sizeof(fault_stack);
	tss.io_map = sizeof(tss); /* beyond the limit: no port for user mode */
	memset(tss.io, 0xff, sizeof(tss.io));
	cpu.kernel_stack = tss.rsp[0];
	set_system_descriptor(LDT_SELECTOR, (u64)ldt, sizeof(ldt) - 1, 2);
	struct table_register r = {sizeof(gdt) - 1, (u64)gdt};
	asm volatile("lgdt %0" : : "m"(r) : "memory");
	r = (struct table_register){sizeof(idt) - 1, (u64)idt};
	asm volatile("lidt %0" : : "m"(r) : "memory");
	reload_tss();
	asm volatile("lldt %w0" : : "r"(LDT_SELECTOR) : "memory");
	wrmsr(MSR_GS_BASE, (u64)&cpu);
	wrmsr(MSR_KERNEL_GS_BASE, 0);
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
	wrmsr(MSR_STAR, (u64)USER32_CS << 48 | (u64)KERNEL_CS << 32);
	wrmsr(MSR_LSTAR, (u64)syscall_entry);
	wrmsr(MSR_SFMASK, 0x47700);
	pic_start();
}

static void timer_count(u16 count)
{
	outb(0x40, count);
	outb(0x40, count >> 8);
}

/* Masks the line, takes it low by a one-shot that is far away, and has the controller forget what
 * it saw of earlier counts: no request from before comes later. */
void timer_stop(void)
{
	outb(0x21, 0xff);
	outb(0x43, 0x30); /* channel 0, interrupt on terminal count */
	timer_count(0xffff);
	pic_start();
}

void timer_start(u32 hertz)
{
	timer_stop();
	outb(0x43, 0x34); /* channel 0, rate generator */
	timer_count(1193182 / hertz);
	outb(0x21, 0xfe);
}

void timer_once(u16 count)
{
	timer_stop();
	timer_count(count);
	outb(0x21, 0xfe);
}

static void interrupt(struct frame *frame)
{
	if (frame->vector == 0x27) { /* spurious unless in service */
		outb(0x20, 0x0b);
		if (!(inb(0x20) & 0x80))
			return;
	}
	if (frame->vector == 0x20) {
		ticks++;
		interrupted_rip = frame->rip;
	}
	if (frame->vector >= 0x28)
		outb(0xa0, 0x20);
	outb(0x20, 0x20);
	if (frame->vector == 0x20 && (frame->cs & 3))
		preempt();
}

static void panic(struct frame *frame, u64 cr2)
{
	print("FAIL unexpected: exception %d, error %x, RIP %x, CS %x, CR2 %x\n", frame->vector, frame->error, frame->rip,
	      frame->cs, cr2);
	checks_failed++;
	finish();
}

void trap(struct frame *frame)
{
	u64 cr2 = frame->vector == 14 ? read_cr2() : 0;
	if (trap_hook[frame->vector]) {
		trap_hook[frame->vector](frame);
		return;
	}
	if (frame->vector >= 0x20 && frame->vector < 0x30) {
		interrupt(frame);
		return;
	}
	if (frame->vector == 0x80) {
		system_call(frame);
		return;
	}
	if (process_fault(frame, cr2))
		return;
	if (!catch_rsp || (frame->cs & 3))
		panic(frame, cr2);
	caught = (struct caught){frame->vector, frame->error, cr2, frame->rip, frame->cs, frame->rflags, frame->rsp, frame->ss, 0};
	if (frame->vector == 1)
		caught.dr6 = read_dr6();
	catch_resume();
}
