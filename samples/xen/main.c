/* Console, pages, and the order of the checks. */
#include "guest.h"

struct start_info *start;
volatile u64 fixup, fault_vector, fault_error, fault_address;
volatile u64 resume, resumed;
volatile u64 events_taken, user_calls, user_value;
static u64 next_page, checks, bad;
extern u64 stub_table[];
extern void user_done(void);
volatile u8 *shared;

void print(const char *text)
{
    u64 size = 0;
    while (text[size])
        size++;
    call(CONSOLE_IO, 0, size, (u64)text, 0);
}

void print_number(u64 value)
{
    char text[20], *at = text + 19;
    *at = 0;
    do
        *--at = '0' + value % 10;
    while (value /= 10);
    print(at);
}

static void print_signed(long value)
{
    if (value < 0)
        print("-");
    print_number(value < 0 ? -value : value);
}

void check(const char *name, long got, long want)
{
    checks++;
    bad += got != want;
    print(got == want ? "ok   " : "BAD  ");
    print(name);
    if (got != want) {
        print(": got ");
        print_signed(got);
        print(", want ");
        print_signed(want);
    }
    print("\n");
}

void die(const char *why)
{
    u32 crash = 3;
    print("retrap xen: ");
    print(why);
    print("\n");
    call(SCHED_OP, 2, (u64)&crash, 0, 0);
    for (;;)
        ;
}

/* -- memory ----------------------------------------------------------------------------------- */

u8 *page(void)
{
    u64 *at = (u64 *)(BASE + next_page++ * 4096);
    if (((u64)at >> 12) >= ((start->tables + (start->table_count + 1) * 4096 + (512 << 10)) >> 12))
        die("out of pages");
    for (int index = 0; index < 512; index++)
        at[index] = 0;
    return (u8 *)at;
}

u64 machine(const void *at)
{
    return ((u64 *)start->frames)[((u64)at - BASE) >> 12];
}

static u64 *readable(u64 frame)
{
    return (u64 *)(BASE + M2P[frame] * 4096);
}

u64 *table_of(u64 at, int level)
{
    u64 *table = (u64 *)start->tables;
    for (int above = 4; above > level; above--)
        table = readable((table[at >> (12 + 9 * (above - 1)) & 511] & FRAME) >> 12);
    return table;
}

u64 *entry_of(u64 at)
{
    return &table_of(at, 1)[at >> 12 & 511];
}

u64 entry_machine(u64 at)
{
    u64 *entry = entry_of(at);
    return machine(entry) << 12 | ((u64)entry & 4095);
}

long map(const void *at, u64 entry)
{
    return call(UPDATE_VA_MAPPING, (u64)at, entry, 2, 0);
}

void set_entry(const void *at, u64 flags)
{
    if (map(at, machine(at) << 12 | flags))
        die("a page cannot be mapped again");
}

long update(u64 pointer, u64 value)
{
    struct update request = { pointer, value };
    u32 done;
    return call(MMU_UPDATE, (u64)&request, 1, (u64)&done, DOMID_SELF);
}

long extended(u32 command, u64 first, u64 second)
{
    struct extended request = { command, 0, first, second };
    return call(MMUEXT_OP, (u64)&request, 1, 0, DOMID_SELF);
}

u64 foreign_frame(void)
{
    return call(MEMORY_OP, 2, 0, 0, 0);
}

/* -- exceptions ------------------------------------------------------------------------------- */

void trapped(struct frame *frame)
{
    if (frame->vector == 32) {
        /* take all events: clear what is pending, selector first */
        events_taken++;
        shared[0] = 0;
        *(volatile u64 *)(shared + 8) = 0;
        for (int word = 0; word < 64; word++)
            ((volatile u64 *)(shared + 2048))[word] = 0;
        return;
    }
    if (frame->vector == 33) {
        user_calls++;
        if (frame->rax == 1)
            user_value = frame->rdi;
        if (frame->rax == 99) {
            frame->rip = (u64)user_done;
            frame->cs = 0xe030;
            frame->ss = 0xe02b;
        }
        return;
    }
    fault_vector = frame->vector;
    fault_error = frame->error;
    fault_address = *(volatile u64 *)(shared + 16);
    if ((frame->cs & 3) == 3) {
        user_value += frame->vector << 16;
        frame->rip += frame->r8 ? frame->r8 : 1; /* behind the instruction of user_code */
        return;
    }
    if (frame->vector == 100)
        return;
    if (frame->vector == 1 && resume) { /* a breakpoint that is passed */
        resumed++;
        frame->rflags |= 0x10000;
        return;
    }
    if (!fixup) {
        print("vector ");
        print_number(frame->vector);
        print(" at ");
        print_number(frame->rip);
        print(" address ");
        print_number(fault_address);
        die(": unexpected");
    }
    frame->rip = fixup;
    frame->cs = 0xe030; /* it may have come from a return that fails */
    frame->ss = 0xe02b;
}

void set_traps(void)
{
    static struct trap traps[16];
    int count = 0;
    for (u64 *entry = stub_table; *entry != -1UL; entry += 2, count++) {
        traps[count].vector = entry[0];
        traps[count].flags = entry[0] == 100 ? 3 : 0;
        traps[count].selector = 0xe033;
        traps[count].address = entry[1];
    }
    check("traps.set", call(SET_TRAP_TABLE, (u64)traps, 0, 0, 0), 0);
}

void main(void)
{
    u32 power_off = 0;
    next_page = (start->tables - BASE) / 4096 + start->table_count + 1;
    print("retrap xen: hostile guest\n");
    check("calls.by-syscall", call(XEN_VERSION, 0, 0, 0, 0) > 0, 1);
    check("calls.by-page", call_by_page(XEN_VERSION, 0, 0, 0, 0), call(XEN_VERSION, 0, 0, 0, 0));
    shared = page();
    check("shared.map", map((void *)shared, start->shared_info | P | RW | US | A | D | NX), 0);
    set_traps();
    check_mappings();
    check_tables();
    check_stores();
    check_descriptors();
    check_pointers();
    check_calls();
    check_instructions();
    check_processor();
    check_grants();
    check_exchange();
    check_events();
    check_user();
    print("retrap xen: ");
    print_number(checks);
    print(" checks, ");
    print_number(bad);
    print(" bad\n");
    if (bad)
        die("not every forbidden thing was refused as it should be");
    call(SCHED_OP, 2, (u64)&power_off, 0, 0);
    die("still here after power-off");
}
