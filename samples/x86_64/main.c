/* The order of things: bring the machine up, run the checks, say how many failed, leave. */
#include "kernel.h"

static struct { u64 start, size; u32 type; } __attribute__((packed)) region VOLATILE_DATA;

void finish(void)
{
	print("retrap sample: %d checks, %d failed\n", (u64)checks_done, (u64)checks_failed);
	outb(0xf4, checks_failed != 0);
	for (;;)
		asm volatile("cli; hlt");
}

static void check_console(void)
{
	outb(0x3ff, 0x5a);
	WANT(inb(0x3ff), 0x5a);
	outb(0x3ff, 0xa5);
	WANT(inb(0x3ff), 0xa5);
	WANT(inb(0x3fd) & 0x20, 0x20);
}

static u64 boot_parameters;

/* All of the kernel's memory is RAM by the loader's memory map. */
static void check_memory_map(void)
{
	u8 *map = direct(boot_parameters);
	u64 covered = 0;
	for (u32 i = 0; i < map[0x1e8]; i++) {
		memcpy(&region, map + 0x2d0 + 20 * i, 20);
		if (region.type == 1 && region.start <= 0x1000000 && region.start + region.size >= MEMORY_END)
			covered++;
	}
	WANT(covered, 1);
}

static void check_pages_returned(void)
{
	scratch_drop();
	WANT(pages_in_use(), 1); /* the scratch area's own table */
}

static const struct check first[] = {{"console", check_console, 0, 0}, {"memory-map", check_memory_map, 0, 0}};
static const struct check last[] = {{"memory.all-pages-returned", check_pages_returned, 0, 0}};

void kernel_main(u64 boot_params)
{
	console_start();
	print("retrap sample kernel, x86-64\n");
	memory_start();
	traps_start();
	boot_parameters = boot_params;
	u64 command_line = *(u32 *)(direct(boot_params) + 0x228);
	if (command_line && command_line < 0x4000000)
		choose_checks(direct(command_line));
	run_checks(first, LENGTH(first));
	check_sensitive(); /* before anything that needs IRETQ */
	check_registers();
	check_exceptions();
	check_paging();
	check_ports();
	check_interrupts();
	check_self_modifying();
	check_user();
	processes_finish();
	run_checks(last, LENGTH(last));
	memory_finish();
	finish();
}
