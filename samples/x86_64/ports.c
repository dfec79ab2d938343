/* Port I/O: what was written reads back, counters count, strings go through. */
#include "kernel.h"

#define AREA (SCRATCH_AREA + 0x200000)

static void check_pic(void)
{
	outb(0x21, 0xa5);
	outb(0xa1, 0x5a);
	WANT(inb(0x21), 0xa5);
	WANT(inb(0xa1), 0x5a);
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
	WANT(inb(0x21), 0xff);
	outb(0x20, 0x0b); /* in service: nothing */
	WANT(inb(0x20), 0);
}

static u32 latch(void)
{
	outb(0x43, 0);
	u32 low = inb(0x40);
	return low | inb(0x40) << 8;
}

static void check_pit(void)
{
	outb(0x43, 0x34);
	outb(0x40, 0x00);
	outb(0x40, 0x80); /* 0x8000 down to 1, and again */
	u32 first = latch(), changes = 0;
	WANT(first <= 0x8000, true);
	for (u32 i = 0; i < 1000000 && changes < 3; i++) {
		u32 now = latch();
		WANT(now <= 0x8000, true);
		changes += now != first;
		first = now;
	}
	WANT(changes, 3);
	outb(0x43, 0xe2); /* read-back: status of channel 0 */
	WANT(inb(0x40) & 0x3f, 0x34);
	timer_stop();
}

static u8 cmos(u8 reg)
{
	outb(0x70, reg);
	return inb(0x71);
}

static bool is_decimal(u8 v, u8 limit) { return (v & 0xf) < 10 && v < limit; }

static void check_cmos(void)
{
	WANT(cmos(0x0d), 0x80); /* memory and time are valid */
	for (u32 i = 0; i < 100000 && (cmos(0x0a) & 0x80); i++)
		;
	WANT(cmos(0x0b) & 6, 2); /* 24 hours, decimal */
	WANT(is_decimal(cmos(0), 0x60), true);
	WANT(is_decimal(cmos(2), 0x60), true);
	WANT(is_decimal(cmos(4), 0x24), true);
	WANT(is_decimal(cmos(8), 0x13), true);
	outb(0x70, 0x50);
	u8 old = inb(0x71);
	outb(0x71, 0x3c);
	WANT(cmos(0x50), 0x3c);
	outb(0x71, old);
	WANT(cmos(0x50), old);
}

static void check_string_in(void)
{
	u8 bytes[18];
	void *to = bytes + 1;
	u64 count = 16;
	memset(bytes, 0x11, sizeof(bytes));
	outb(0x3ff, 0xc3);
	asm volatile("rep insb" : "+D"(to), "+c"(count) : "d"(0x3ff) : "memory");
	WANT(count, 0);
	WANT(to, bytes + 17);
	WANT(bytes[0], 0x11);
	WANT(bytes[17], 0x11);
	for (u32 i = 1; i < 17; i++)
		WANT(bytes[i], 0xc3);
	to = bytes + 16;
	count = 4;
	outb(0x3ff, 0x99);
	asm volatile("std; rep insb; cld" : "+D"(to), "+c"(count) : "d"(0x3ff) : "memory");
	WANT(to, bytes + 12);
	WANT(bytes[12], 0xc3);
	WANT(bytes[13], 0x99);
	WANT(bytes[16], 0x99);
}

/* The last byte read back from the scratch register is the last of the string. */
static void check_string_out(void)
{
	static const char text[] = "ports: a string by REP OUTSB\n";
	const void *from = text;
	u64 count = sizeof(text) - 1;
	asm volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(0x3f8) : "memory");
	WANT(count, 0);
	WANT(from, text + sizeof(text) - 1);
	from = "\x01\x02\x03\x77";
	count = 4;
	asm volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(0x3ff) : "memory");
	WANT(inb(0x3ff), 0x77);
}

static u64 left[2] VOLATILE_DATA;
static void note_count(struct frame *frame)
{
	left[0] = frame->rcx;
	left[1] = frame->rdi;
	catch_resume();
}

static NOINLINE void insb_across(u64 address)
{
	u64 count = 8;
	asm volatile("rep insb" : "+D"(address), "+c"(count) : "d"(0x3ff) : "memory");
}

/* A string that meets an absent page stops there, with registers saying how far it came. */
static void check_string_fault(void)
{
	u64 page = page_new();
	map_page(AREA, page, PTE_P | PTE_W | PTE_NX);
	outb(0x3ff, 0x42);
	trap_hook[14] = note_count;
	bool faulted = catch_fault(insb_across, AREA + 4093);
	trap_hook[14] = NULL;
	WANT(faulted, true);
	WANT(left[0], 5);
	WANT(left[1], AREA + 4096);
	WANT(((u8 *)direct(page))[4092], 0);
	WANT(((u8 *)direct(page))[4093], 0x42);
	WANT(((u8 *)direct(page))[4095], 0x42);
	unmap_page(AREA);
	page_drop(page);
}

static const struct check checks[] = {
	{"ports.interrupt-controller", check_pic, 0, 0},
	{"ports.interval-timer", check_pit, 0, 0},
	{"ports.clock", check_cmos, 0, 0},
	{"ports.string-in", check_string_in, 0, 0},
	{"ports.string-out", check_string_out, 0, 0},
	{"ports.string-fault", check_string_fault, 0, 0},
};

void check_ports(void)
{
	run_checks(checks, LENGTH(checks));
}
