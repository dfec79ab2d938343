/* Mappings and page tables: every update that must be refused, and that a refusal leaves nothing behind. */
#include "guest.h"

#define DATA (P | RW | US | A | D | NX)
#define READ_ONLY (P | US | A | NX)

static u8 *target; /* a page whose last-level entry is changed */

static long remap(u64 frame, u64 flags)
{
    return map(target, frame << 12 | flags);
}

void check_mappings(void)
{
    u64 foreign = foreign_frame(), original;
    u64 *table;
    target = page();
    original = machine(target);
    table = table_of((u64)target, 1);
    check("map.own", remap(original, DATA), 0);
    check("map.foreign", remap(foreign, DATA), -EBUSY);
    check("map.foreign-read-only", remap(foreign, READ_ONLY), -EBUSY);
    check("map.foreign-by-mmu-update", update(entry_machine((u64)target), foreign << 12 | DATA), -EBUSY);
    check("map.hypervisor", remap(1, READ_ONLY), -EBUSY);
    check("map.frame-0", remap(0, DATA), -EBUSY);
    check("map.no-such-frame", remap(0x7ffffff, DATA), -EPERM);
    check("map.invalid-frame", remap(FRAME >> 12, DATA), -EINVAL);
    check("map.table-writable", remap(machine(table), DATA), -EBUSY);
    check("map.root-writable", remap(machine((void *)start->tables), DATA), -EBUSY);
    check("map.table-read-only", remap(machine(table), READ_ONLY), 0);
    check("map.table-executable", remap(machine(table), READ_ONLY & ~NX), 0);
    check("map.back", remap(original, DATA), 0);
    check("map.protection-key", remap(original, DATA | 1UL << 59), -EINVAL);
    check("map.no-table-there", map((void *)UNMAPPED, original << 12 | DATA), -EINVAL);
    check("map.hypervisor-address", map((void *)HYPERVISOR_START, original << 12 | DATA), -EINVAL);
    check("map.unaligned-pointer", update(entry_machine((u64)target) | 4, original << 12 | DATA), -EINVAL);
    check("map.unknown-kind", update(entry_machine((u64)target) | 3, original << 12 | DATA), -ENOSYS);
    check("map.foreign-table", update(foreign << 12, original << 12 | DATA), -EINVAL);
    check("map.hypervisors-table", update(1 << 12, original << 12 | DATA), -EINVAL);
    check("map.unchanged", (*entry_of((u64)target) & FRAME) >> 12, original);
    check("map.user-bit-imposed", remap(original, DATA & ~US) ? -1 : (long)(*entry_of((u64)target) & US), US);

    /* three requests of which the second is refused: one is done */
    struct update requests[3] = {
        { entry_machine((u64)target), original << 12 | READ_ONLY },
        { entry_machine((u64)target), foreign << 12 | DATA },
        { entry_machine((u64)target), original << 12 | DATA },
    };
    u32 done = 9;
    check("batch.refused", call(MMU_UPDATE, (u64)requests, 3, (u64)&done, DOMID_SELF), -EBUSY);
    check("batch.done-before", done, 1);
    check("batch.first-stays", *entry_of((u64)target) & RW, 0);
    check("batch.other-domain", call(MMU_UPDATE, (u64)requests, 1, 0, 77), -ESRCH);
    check("batch.administrator", call(MMU_UPDATE, (u64)requests, 1, 0, 0), -EPERM);
    remap(original, DATA);

    /* the table from machine to pseudo-physical frames */
    check("m2p.reads", M2P[original], ((u64)target - BASE) >> 12);
    check("m2p.own", update(original << 12 | 1, ((u64)target - BASE) >> 12), 0);
    check("m2p.foreign", update(foreign << 12 | 1, 5), -EINVAL);
    TRY("movq $0, (%0)", "r"(&M2P[original]));
    check("m2p.store-faults", fault_vector, 14);
}

void check_tables(void)
{
    u64 foreign = foreign_frame();
    u64 *second = table_of((u64)target, 2), *third = table_of((u64)target, 3), *root = (u64 *)start->tables;
    u64 slot = machine(second) << 12 | 500 * 8; /* nothing is mapped there */
    u64 root_entry = machine(root) << 12;
    u8 *data = page(), *candidate = page();
    u64 data_frame = machine(data), frame = machine(candidate);
    u64 *entries = (u64 *)candidate;

    check("link.large-page", update(slot, data_frame << 12 | DATA | PSE), -EINVAL);
    check("link.data-in-use", update(slot, data_frame << 12 | P | RW | US), -EINVAL);
    check("link.foreign", update(slot, foreign << 12 | P | RW | US), -EINVAL);
    check("link.hypervisor", update(slot, 1 << 12 | P | RW | US), -EINVAL);
    check("link.root-below", update(slot, machine(root) << 12 | P | RW | US), -EINVAL);
    check("link.third-below-second", update(slot, machine(third) << 12 | P | US), -EINVAL);
    check("link.first-below-third", update((machine(third) << 12) + 8, machine(table_of((u64)target, 1)) << 12 | P | RW | US), -EINVAL);
    check("link.first-below-root", update(root_entry + 8, machine(table_of((u64)target, 1)) << 12 | P | RW | US), -EINVAL);

    check("root.reserved-slot", update(root_entry + 256 * 8, machine(third) << 12 | P | RW | US), -EINVAL);
    check("root.reserved-slot-cleared", update(root_entry + 257 * 8, 0), -EINVAL);
    check("root.last-reserved-slot", update(root_entry + 271 * 8, machine(third) << 12 | P | US), -EINVAL);
    check("root.linear-writable", update(root_entry + 300 * 8, root_entry | P | RW | US), -EINVAL);
    check("root.linear", update(root_entry + 300 * 8, root_entry | P | US), 0);
    check("root.linear-made-writable", update(root_entry + 300 * 8, root_entry | P | RW | US), -EINVAL);
    check("root.linear-still-there", root[300] & ~(A | D), root_entry | P | US);
    check("root.linear-removed", update(root_entry + 300 * 8, 0), 0);
    check("second.linear-other-level", update(root_entry + 300 * 8, machine(second) << 12 | P | US), -EINVAL);

    /* pins */
    check("pin.writable", extended(0, frame, 0), -EINVAL);
    check("pin.foreign", extended(0, foreign, 0), -EINVAL);
    check("pin.hypervisor", extended(3, 1, 0), -EINVAL);
    check("pin.no-such-frame", extended(0, 1UL << 50, 0), -EINVAL);
    check("pin.root-again", extended(3, machine(root), 0), -EINVAL);
    check("pin.root-as-first", extended(0, machine(root), 0), -EINVAL);
    check("unpin.not-pinned", extended(4, frame, 0), -EINVAL);
    check("unpin.foreign", extended(4, foreign, 0), -EINVAL);

    /* a promotion that fails half way gives everything back */
    set_entry(candidate, DATA);
    entries[0] = data_frame << 12 | READ_ONLY;
    for (int index = 1; index < 100; index++)
        entries[index] = machine(target) << 12 | DATA;
    entries[100] = foreign << 12 | READ_ONLY;
    set_entry(candidate, READ_ONLY);
    check("pin.one-foreign-entry", extended(0, frame, 0), -EINVAL);
    check("pin.failed-leaves-no-type", map(candidate, frame << 12 | DATA), 0);
    entries[100] = machine(root) << 12 | DATA;
    set_entry(candidate, READ_ONLY);
    check("pin.one-writable-root", extended(0, frame, 0), -EINVAL);
    set_entry(candidate, DATA);
    entries[100] = 0;
    set_entry(candidate, READ_ONLY);
    check("pin.good", extended(0, frame, 0), 0);
    check("pin.good-again", extended(0, frame, 0), -EINVAL);
    check("pin.mapped-writable-now", map(candidate, frame << 12 | DATA), -EBUSY);
    check("unpin.good", extended(4, frame, 0), 0);
    check("unpin.writable-again", map(candidate, frame << 12 | DATA), 0);
    /* what the failed ones took of the target is gone: it can become a table itself */
    for (int index = 0; index < 512; index++)
        entries[index] = 0;
    set_entry(target, READ_ONLY);
    check("pin.counts-rolled-back", extended(0, machine(target), 0), 0);
    check("unpin.counts", extended(4, machine(target), 0), 0);
    set_entry(target, DATA);

    /* races of type changes: a stale translation must not let a store through */
    u64 before;
    *(volatile u64 *)candidate = 0;
    call(UPDATE_VA_MAPPING, (u64)candidate, frame << 12 | READ_ONLY, 0, 0); /* no flush is asked for */
    check("race.pin-unflushed", extended(0, frame, 0), 0);
    before = *(volatile u64 *)candidate;
    TRY("movq %1, (%0)", "r"(candidate), "r"(foreign << 12 | DATA));
    check("race.store-faults", fault_vector, 14);
    check("race.nothing-stored", *(volatile u64 *)candidate, before);
    check("race.writable-while-table", map(candidate, frame << 12 | DATA), -EBUSY);
    check("race.root-of-a-first", extended(5, frame, 0), -EINVAL);
    check("race.other-level", extended(1, frame, 0), -EINVAL);
    check("race.unpin", extended(4, frame, 0), 0);
    set_entry(candidate, DATA);

    /* a table that two tables share, taken apart */
    entries[7] = data_frame << 12 | READ_ONLY;
    set_entry(candidate, READ_ONLY);
    check("share.first", update(slot, frame << 12 | P | RW | US), 0);
    check("share.second", update(slot + 8, frame << 12 | P | RW | US), 0);
    check("share.one-left", update(slot, 0), 0);
    check("share.still-a-table", map(candidate, frame << 12 | DATA), -EBUSY);
    check("share.none-left", update(slot + 8, 0), 0);
    check("share.data-again", map(candidate, frame << 12 | DATA), 0);

    check("base.data", extended(5, data_frame, 0), -EINVAL);
    check("base.first", extended(5, machine(table_of((u64)target, 1)), 0), -EINVAL);
    check("base.foreign", extended(5, foreign, 0), -EINVAL);
    check("base.same", extended(5, machine(root), 0), 0);
    check("user-base.foreign", extended(15, foreign, 0), -EINVAL);
    check("user-base.data", extended(15, data_frame, 0), -EINVAL);
    check("extended.unknown", extended(99, 0, 0), -ENOSYS);
    check("extended.flush-not-canonical", extended(7, NOT_CANONICAL, 0), 0);
    check("extended.flush-hypervisor", extended(11, HYPERVISOR_START, 0), 0);
    check("extended.flush", extended(6, 0, 0), 0);

    *(volatile u64 *)data = 5;
    check("clear.page", extended(16, data_frame, 0) ? -1 : *(volatile long *)data, 0);
    check("clear.table", extended(16, machine(table_of((u64)target, 1)), 0), -EINVAL);
    check("clear.foreign", extended(16, foreign, 0), -EINVAL);
    check("copy.onto-table", extended(17, machine(root), data_frame), -EINVAL);
    check("copy.from-foreign", extended(17, data_frame, foreign), -EINVAL);
    check("copy.page", extended(17, data_frame, frame) ? -1 : ((volatile long *)data)[7], ((volatile long *)candidate)[7]);

    /* memory that is given back */
    u64 list[1] = { data_frame };
    struct { u64 *start, count; u32 order, flags; u16 domain; } reservation = { list, 1, 0, 0, DOMID_SELF };
    check("reservation.mapped", call(MEMORY_OP, 1, (u64)&reservation, 0, 0), 0);
    list[0] = foreign;
    check("reservation.foreign", call(MEMORY_OP, 1, (u64)&reservation, 0, 0), 0);
    list[0] = data_frame;
    map(data, 0);
    set_entry(candidate, DATA);
    check("reservation.unmapped", call(MEMORY_OP, 1, (u64)&reservation, 0, 0), 1);
    check("reservation.no-longer-own", map(data, data_frame << 12 | DATA), -EBUSY);
    list[0] = ((u64)data - BASE) >> 12;
    check("reservation.populate", call(MEMORY_OP, 6, (u64)&reservation, 0, 0), 1);
    check("reservation.m2p", M2P[list[0]], ((u64)data - BASE) >> 12);
    ((u64 *)start->frames)[((u64)data - BASE) >> 12] = list[0];
    check("reservation.own-again", map(data, list[0] << 12 | DATA), 0);
    check("reservation.no-more", call(MEMORY_OP, 6, (u64)&reservation, 0, 0), 0);
}

/* Stores into a table that is mapped read-only: done when they are allowed, a page fault otherwise. */
void check_stores(void)
{
    u64 foreign = foreign_frame();
    u8 *data = page(), *table = page();
    u64 frame = machine(table), good = machine(data) << 12 | DATA;
    volatile u64 *entry = (u64 *)table;
    u64 old;
    set_entry(table, READ_ONLY);
    if (extended(0, frame, 0))
        die("a table cannot be pinned");
    TRY("movq %1, (%0)", "r"(entry), "r"(good));
    check("store.mov", fault_vector, NO_FAULT);
    check("store.mov-done", *entry, good);
    TRY("movq %1, (%0)", "r"(entry), "r"(foreign << 12 | DATA));
    check("store.foreign", fault_vector, 14);
    check("store.foreign-error", fault_error, 3);
    check("store.foreign-not-done", *entry, good);
    TRY("movq $0, (%0)", "r"(entry));
    check("store.immediate", fault_vector == NO_FAULT ? (long)*entry : -1, 0);
    old = good;
    asm volatile("xchgq %0, (%1)" : "+r"(old) : "r"(entry) : "memory");
    check("store.xchg", *entry, good);
    check("store.xchg-old", old, 0);
    TRY("lock btrq $1, (%0)", "r"(entry));
    check("store.locked-clear-of-a-bit", fault_vector == NO_FAULT ? (long)*entry : -1, good & ~RW);
    TRY("lock orq $2, (%0)", "r"(entry));
    check("store.locked-or", fault_vector == NO_FAULT ? (long)*entry : -1, good);
    TRY("movq %1, %%rax\n\tmovq %2, %%rbx\n\tlock cmpxchgq %%rbx, (%0)", "r"(entry), "r"(good), "r"(good & ~RW));
    check("store.compare-exchange", fault_vector == NO_FAULT ? (long)*entry : -1, good & ~RW);
    TRY("movl $0, (%0)", "r"(entry));
    check("store.half", fault_vector == NO_FAULT ? (long)*entry : -1, (good & ~RW) >> 32 << 32);
    TRY("xorl %%eax, %%eax\n\tmovl $4, %%ecx\n\tmovq %0, %%rdi\n\trep stosq", "r"(entry));
    check("store.string", fault_vector == NO_FAULT ? (long)*entry : -1, 0);
    TRY("lock orq %1, (%0)", "r"(entry), "r"(frame << 12 | P | RW));
    check("store.own-table-writable", fault_vector, 14);
    check("store.own-table-not-done", *entry, 0);
    check("store.unpin", extended(4, frame, 0), 0);
    TRY("movq $1, (%0)", "r"(table_of((u64)data, 2)));
    check("store.second-level", fault_vector, 14);
}
