/* Descriptors, entries into the kernel, bad pointers to every call, and calls that are nobody's. */
#include "guest.h"

#define DATA (P | RW | US | A | D | NX)
#define READ_ONLY (P | US | A | NX)
#define CODE64 0x00af9b000000ffffUL

void check_descriptors(void)
{
    u64 foreign = foreign_frame();
    u8 *table = page();
    u64 frame = machine(table), place = frame << 12;
    u64 *words = (u64 *)table;
    u64 frames[14];
    frames[0] = frame;
    words[1] = CODE64; /* of level 0 */
    check("gdt.writable", call(SET_GDT, (u64)frames, 512, 0, 0), -EINVAL);
    set_entry(table, READ_ONLY);
    check("gdt.too-large", call(SET_GDT, (u64)frames, 14 * 512 + 1, 0, 0), -EINVAL);
    frames[0] = foreign;
    check("gdt.foreign", call(SET_GDT, (u64)frames, 512, 0, 0), -EINVAL);
    frames[0] = machine((void *)start->tables);
    check("gdt.root", call(SET_GDT, (u64)frames, 512, 0, 0), -EINVAL);
    frames[0] = frame;
    frames[1] = foreign;
    check("gdt.second-foreign", call(SET_GDT, (u64)frames, 1024, 0, 0), -EINVAL);
    check("gdt.failed-leaves-no-type", map(table, frame << 12 | DATA), 0);
    words[2] = 0x0000890000000067UL; /* a task-state segment */
    set_entry(table, READ_ONLY);
    check("gdt.task-state", call(SET_GDT, (u64)frames, 512, 0, 0), -EINVAL);
    set_entry(table, DATA);
    words[2] = 0;
    set_entry(table, READ_ONLY);
    check("gdt.good", call(SET_GDT, (u64)frames, 512, 0, 0), 0);
    check("gdt.level-raised", words[1] >> 45 & 3, 3);
    check("gdt.mapped-writable", map(table, frame << 12 | DATA), -EBUSY);
    check("gdt.pinned-as-table", extended(0, frame, 0), -EINVAL);
    check("descriptor.data", call(UPDATE_DESCRIPTOR, place + 3 * 8, 0x00cf93000000ffffUL, 0, 0), 0);
    check("descriptor.level-raised", words[3] >> 45 & 3, 3);
    check("descriptor.call-gate-to-hypervisor", call(UPDATE_DESCRIPTOR, place + 4 * 8, 0x8000ec00e0080000UL, 0, 0), -EINVAL);
    check("descriptor.interrupt-gate", call(UPDATE_DESCRIPTOR, place + 4 * 8, 0x8000ee00e0080000UL, 0, 0), -EINVAL);
    check("descriptor.task-state", call(UPDATE_DESCRIPTOR, place + 4 * 8, 0x0000890000000067UL, 0, 0), -EINVAL);
    check("descriptor.local-table", call(UPDATE_DESCRIPTOR, place + 4 * 8, 0x0000e20000000067UL, 0, 0), -EINVAL);
    check("descriptor.unaligned", call(UPDATE_DESCRIPTOR, place + 4, 0, 0, 0), -EINVAL);
    check("descriptor.foreign", call(UPDATE_DESCRIPTOR, foreign << 12, 0, 0, 0), -EINVAL);
    check("descriptor.hypervisor", call(UPDATE_DESCRIPTOR, 1 << 12, 0, 0, 0), -EINVAL);
    check("descriptor.in-a-page-table", call(UPDATE_DESCRIPTOR, machine((void *)start->tables) << 12, 0, 0, 0), -EINVAL);
    check("descriptor.unchanged", words[4], 0);
    TRY("movl $0x1b, %%eax\n\tmovl %%eax, %%fs", "i"(0));
    check("segment.own", fault_vector, NO_FAULT);
    TRY("movl $0x23, %%eax\n\tmovl %%eax, %%fs", "i"(0));
    check("segment.absent", fault_vector, 13);
    TRY("xorl %%eax, %%eax\n\tmovl %%eax, %%fs", "i"(0));
    check("segment.null", fault_vector, NO_FAULT);
    /* a call leaves the flat segments behind, as SYSCALL does */
    u64 before, after;
    asm volatile("pushq $0x0b\n\tleaq 1f(%%rip), %%rax\n\tpushq %%rax\n\tlretq\n1:\tmovl %%cs, %%ebx\n\t"
                 "movl $17, %%eax\n\txorl %%edi, %%edi\n\txorl %%esi, %%esi\n\tsyscall\n\tmovl %%cs, %%ecx"
                 : "=b"(before), "=c"(after) : : "rax", "rdx", "rsi", "rdi", "r11", "memory");
    check("segment.own-code", before, 0x0b);
    check("segment.flat-behind-a-call", after, 0xe033);
    check("ldt.unaligned", extended(13, (u64)table + 8, 8), -EINVAL);
    check("ldt.too-large", extended(13, (u64)table, 8193), -EINVAL);
    check("ldt.none", extended(13, 0, 0), 0);
    check("gdt.none", call(SET_GDT, 0, 0, 0, 0), 0);
    check("gdt.data-again", map(table, frame << 12 | DATA), 0);

    struct trap traps[2] = { { 5, 0, 0xe008, 0, (u64)check }, { 0, 0, 0, 0, 0 } };
    check("traps.hypervisors-selector", call(SET_TRAP_TABLE, (u64)traps, 0, 0, 0), -EPERM);
    traps[0].selector = 0xe033;
    traps[0].address = NOT_CANONICAL;
    check("traps.not-canonical", call(SET_TRAP_TABLE, (u64)traps, 0, 0, 0), -EINVAL);
    check("callbacks.not-canonical", call(SET_CALLBACKS, NOT_CANONICAL, 0, 0, 0), -EINVAL);
    struct { u16 kind, flags; u64 address; } callback = { 2, 0, NOT_CANONICAL };
    check("callback.not-canonical", call(CALLBACK_OP, 0, (u64)&callback, 0, 0), -EINVAL);
    callback.kind = 99;
    callback.address = (u64)check;
    check("callback.unknown", call(CALLBACK_OP, 0, (u64)&callback, 0, 0), -ENOSYS);
    check("base.not-canonical", call(SET_SEGMENT_BASE, 0, NOT_CANONICAL, 0, 0), -EINVAL);
    check("base.unknown", call(SET_SEGMENT_BASE, 9, 0, 0, 0), -EINVAL);
    check("stack.not-canonical", call(STACK_SWITCH, 0, NOT_CANONICAL, 0, 0), -EINVAL);
    check("debug.hypervisors-address", call(SET_DEBUGREG, 0, HYPERVISOR_START, 0, 0), -EPERM);
    check("debug.unknown", call(SET_DEBUGREG, 8, 0, 0, 0), -EINVAL);
}

static const struct { const char *name; u8 number; signed char pointer; u64 a, b, c; } pointers[] = {
    { "pointer.set_trap_table", SET_TRAP_TABLE, 0, 0, 0, 0 },
    { "pointer.mmu_update", MMU_UPDATE, 0, 0, 1, 0 },
    { "pointer.mmu_update-many", MMU_UPDATE, 0, 0, 40, 0 },
    { "pointer.set_gdt", SET_GDT, 0, 0, 512, 0 },
    { "pointer.memory_op-decrease", MEMORY_OP, 1, 1, 0, 0 },
    { "pointer.memory_op-maximum", MEMORY_OP, 1, 4, 0, 0 },
    { "pointer.memory_op-map", MEMORY_OP, 1, 9, 0, 0 },
    { "pointer.memory_op-mapping", MEMORY_OP, 1, 12, 0, 0 },
    { "pointer.multicall", MULTICALL, 0, 0, 1, 0 },
    { "pointer.version-extra", XEN_VERSION, 1, 1, 0, 0 },
    { "pointer.version-capabilities", XEN_VERSION, 1, 3, 0, 0 },
    { "pointer.version-features", XEN_VERSION, 1, 6, 0, 0 },
    { "pointer.console", CONSOLE_IO, 2, 0, 8, 0 },
    { "pointer.vcpu-info", VCPU_OP, 2, 10, 0, 0 },
    { "pointer.vcpu-runstate", VCPU_OP, 2, 4, 0, 0 },
    { "pointer.vcpu-timer", VCPU_OP, 2, 8, 0, 0 },
    { "pointer.mmuext_op", MMUEXT_OP, 0, 0, 1, 0 },
    { "pointer.sched-shutdown", SCHED_OP, 1, 2, 0, 0 },
    { "pointer.sched-poll", SCHED_OP, 1, 3, 0, 0 },
    { "pointer.callback", CALLBACK_OP, 1, 0, 0, 0 },
    { "pointer.event-send", EVENT_CHANNEL_OP, 1, 4, 0, 0 },
    { "pointer.event-bind", EVENT_CHANNEL_OP, 1, 1, 0, 0 },
    { "pointer.event-alloc", EVENT_CHANNEL_OP, 1, 6, 0, 0 },
    { "pointer.event-status", EVENT_CHANNEL_OP, 1, 5, 0, 0 },
    { "pointer.physdev-iopl", PHYSDEV_OP, 1, 6, 0, 0 },
};

void check_pointers(void)
{
    static const u64 bad[] = { UNMAPPED, HYPERVISOR_START, DESCRIPTORS, NOT_CANONICAL, 0xfffffffffffffffcUL };
    for (u64 index = 0; index < sizeof pointers / sizeof *pointers; index++) {
        long worst = -EFAULT;
        for (u64 which = 0; which < sizeof bad / sizeof *bad; which++) {
            u64 at[3] = { pointers[index].a, pointers[index].b, pointers[index].c };
            long got;
            at[(int)pointers[index].pointer] = bad[which];
            got = call(pointers[index].number, at[0], at[1], at[2], DOMID_SELF);
            if (got != -EFAULT)
                worst = got;
        }
        check(pointers[index].name, worst, -EFAULT);
    }
    /* results into memory that cannot be written */
    u8 *only = page();
    set_entry(only, READ_ONLY);
    check("pointer.read-only-result", call(XEN_VERSION, 1, (u64)only, 0, 0), -EFAULT);
    check("pointer.read-only-tables", call(XEN_VERSION, 1, start->tables, 0, 0), -EFAULT);
    /* the end of a mapping in the midst of what is read */
    u8 *edge = page();
    map(edge, 0);
    check("pointer.over-the-edge", call(XEN_VERSION, 3, (u64)edge - 16, 0, 0), -EFAULT);
    set_entry(edge, DATA);
}

void check_calls(void)
{
    static const u64 junk[] = { 0, 1, UNMAPPED, HYPERVISOR_START, NOT_CANONICAL, -1UL };
    long worst = 0;
    for (u64 number = 0; number < 64; number++) {
        /* what would end or disturb the guest itself, and what takes no pointer */
        if (number == IRET || number == SCHED_OP || number == SET_TRAP_TABLE || number == SET_CALLBACKS ||
            number == STACK_SWITCH || number == SET_SEGMENT_BASE || number == 5 || number == 15)
            continue;
        for (u64 first = 0; first < 40; first++)
            for (u64 which = 0; which < sizeof junk / sizeof *junk; which++) {
                long got;
                if (number == VCPU_OP || number == EVENT_CHANNEL_OP || number == MEMORY_OP || number == XEN_VERSION ||
                    number == PHYSDEV_OP || number == CALLBACK_OP || number == 20 || number == CONSOLE_IO)
                    got = call(number, first, junk[which], junk[which], junk[which]);
                else if (first < 6)
                    got = call(number, junk[which], junk[first] & 0xffff, junk[which], junk[first]);
                else
                    continue;
                if (got > 0 && number != MEMORY_OP && number != XEN_VERSION && number != VCPU_OP && number != 9)
                    worst = number;
            }
    }
    check("junk.no-call-succeeds", worst, 0);
    check("junk.alive", call(XEN_VERSION, 0, 0, 0, 0) > 0, 1);
    check("call.unknown", call(63, 0, 0, 0, 0), -ENOSYS);
    check("call.far-out", call(-1UL, 0, 0, 0, 0), -ENOSYS);
    check("call.platform", call(7, 0, 0, 0, 0), -EPERM);
    check("call.domctl", call(36, 0, 0, 0, 0), -EPERM);
    check("call.other-domains-memory", call(22, 0, 0, 0, 0), -EPERM);
    u64 many[2][8] = { { MULTICALL, 7 }, { XEN_VERSION, 7, 0 } };
    check("multicall.call", call(MULTICALL, (u64)many, 2, 0, 0), 0);
    check("multicall.not-within-itself", many[0][1], -ENOSYS);
    check("multicall.result", many[1][1], call(XEN_VERSION, 0, 0, 0, 0));
    many[0][0] = IRET;
    many[1][1] = 7;
    check("multicall.return", multicall_with_return(many, 2), 0xdead);
    check("multicall.ends-with-a-return", many[1][1], 7);
    check("multicall.too-many", call(MULTICALL, (u64)many, 1UL << 40, 0, 0), -EINVAL);

    /* nothing of the hypervisor's memory behind a text */
    static const struct { u32 what, size; } texts[] = { { 1, 16 }, { 2, 144 }, { 3, 1024 }, { 4, 64 }, { 9, 1024 } };
    static u8 text[1024];
    long leaked = 0;
    for (u64 index = 0; index < sizeof texts / sizeof *texts; index++) {
        int ended = 0;
        for (u64 at = 0; at < sizeof text; at++)
            text[at] = 0xff;
        call(XEN_VERSION, texts[index].what, (u64)text, 0, 0);
        for (u64 at = 0; at < texts[index].size; at++) {
            if (!text[at])
                ended = 1;
            leaked += text[at] == 0xff || (ended && text[at] && texts[index].what != 2);
        }
        leaked += texts[index].size < sizeof text && text[texts[index].size] != 0xff;
    }
    check("version.texts-end-in-zeros", leaked, 0);

    u64 foreign = foreign_frame();
    struct { u64 frame; u32 offset, pad; } info = { foreign, 0, 0 };
    check("vcpu-info.foreign", call(VCPU_OP, 10, 0, (u64)&info, 0), -EINVAL);
    info.frame = machine((void *)start->tables);
    check("vcpu-info.root", call(VCPU_OP, 10, 0, (u64)&info, 0), -EINVAL);
    info.frame = machine(page());
    info.offset = 4090;
    check("vcpu-info.over-the-end", call(VCPU_OP, 10, 0, (u64)&info, 0), -EINVAL);
    check("vcpu.other", call(VCPU_OP, 3, 1, 0, 0), -ENOENT);
    check("vcpu.up", call(VCPU_OP, 3, 0, 0, 0), 1);
    check("assist.unknown", call(VM_ASSIST, 0, 77, 0, 0), -EINVAL);
}
