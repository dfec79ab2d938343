/* Instructions that a deprivileged kernel must not have, events, and user code. */
#include "guest.h"

#define DATA (P | RW | US | A | D | NX)
#define READ_ONLY (P | US | A | NX)

extern void stub_32(void), stub_33(void), user_done(void);
extern volatile u8 *shared;

void check_instructions(void)
{
    static const struct { u16 limit; u64 base; } __attribute__((packed)) nothing = { 0, 0 };
    TRY("lidt (%0)", "r"(&nothing));
    check("instruction.lidt", fault_vector, 13);
    TRY("lgdt (%0)", "r"(&nothing));
    check("instruction.lgdt", fault_vector, 13);
    TRY("movl $0x38, %%eax\n\tltr %%ax", "i"(0));
    check("instruction.ltr", fault_vector, 13);
    TRY("movq %0, %%cr3", "r"(0UL));
    check("instruction.write-cr3", fault_vector, 13);
    TRY("movq %0, %%cr0", "r"(0UL));
    check("instruction.paging-off", fault_vector, 13);
    TRY("cli", "i"(0));
    check("instruction.cli-without-level", fault_vector, 13);
    TRY("inb $0x80, %%al", "i"(0));
    check("instruction.in-without-level", fault_vector, 13);
    TRY("outb %%al, $0x80", "i"(0));
    check("instruction.out-without-level", fault_vector, 13);
    TRY("invlpg (%0)", "r"(&nothing));
    check("instruction.invlpg", fault_vector, 13);
    TRY("movl $0xc0000082, %%ecx\n\txorl %%eax, %%eax\n\txorl %%edx, %%edx\n\twrmsr", "i"(0));
    check("instruction.write-lstar", fault_vector, 13);
    TRY("movl $0xc0000080, %%ecx\n\txorl %%eax, %%eax\n\txorl %%edx, %%edx\n\twrmsr", "i"(0));
    check("instruction.write-efer", fault_vector, 13);
    TRY("movl $0xc0000100, %%ecx\n\tmovl $0x9000, %%edx\n\twrmsr", "i"(0));
    check("instruction.base-not-canonical", fault_vector, 13);
    TRY("movl $0xc0000080, %%ecx\n\trdmsr", "i"(0));
    check("instruction.read-efer", fault_vector, NO_FAULT);
    TRY("movl $0x12345678, %%ecx\n\trdmsr", "i"(0));
    check("instruction.read-no-register", fault_vector, 13);
    TRY("movq %%cr0, %%rax", "i"(0));
    check("instruction.read-cr0", fault_vector, NO_FAULT);
    TRY("movl $0x33, %%eax\n\tmovl %%eax, %%ss", "i"(0));
    check("instruction.code-into-ss", fault_vector, 13);
    TRY("movl $0xe008, %%eax\n\tmovl %%eax, %%ds", "i"(0));
    check("instruction.hypervisors-selector", fault_vector, 13);
    u64 name = 0;
    asm volatile("movl $0x40000000, %%eax\n\tud2\n\t.ascii \"xen\"\n\tcpuid" : "=b"(name) : : "rax", "rcx", "rdx");
    check("instruction.forced-cpuid", name, 0x566e6558);
    TRY("ud2\n\t.ascii \"xex\"\n\tcpuid", "i"(0));
    check("instruction.other-prefix", fault_vector, 6);
    TRY(".byte 0xf1", "i"(0));
    check("instruction.int1", fault_vector, 1);
    TRY("xorl %%ecx, %%ecx\n\trdpmc", "i"(0));
    check("instruction.rdpmc", fault_vector, 13);
    TRY("int3", "i"(0));
    check("instruction.int3", fault_vector, 3);
    TRY("int $0x20", "i"(0));
    check("instruction.int-without-gate", fault_vector, 13);
    TRY("int $100", "i"(0));
    check("instruction.int", fault_vector, 100);
    TRY("movq (%0), %%rax", "r"(DESCRIPTORS));
    check("memory.descriptors-read", fault_vector, 14);
    TRY("movq %%rax, (%0)", "r"(DESCRIPTORS + 14 * 4096));
    check("memory.descriptors-written", fault_vector, 14);
    TRY("movq (%0), %%rax", "r"(HYPERVISOR_START + (4UL << 39)));
    check("memory.hypervisors-part", fault_vector, 14);
    TRY("movq (%0), %%rax", "r"(NOT_CANONICAL));
    check("memory.not-canonical", fault_vector, 13);
    TRY("movq %%rax, (%0)", "r"(start->tables));
    check("memory.root-written", fault_vector, 14);
    TRY("movq $2f, %%rax\n\tjmp *%0\n2:", "r"(HYPERVISOR_START));
    check("memory.jump-to-hypervisor", fault_vector, 14);

    u32 level = 1;
    check("io-level.too-high", (level = 4, call(PHYSDEV_OP, 6, (u64)&level, 0, 0)), -EINVAL);
    level = 1;
    check("io-level.one", call(PHYSDEV_OP, 6, (u64)&level, 0, 0), 0);
    TRY("inb $0x80, %%al", "i"(0));
    check("instruction.in-with-level", fault_vector, NO_FAULT);
    TRY("cli", "i"(0));
    check("instruction.cli-with-level", fault_vector, NO_FAULT);
    level = 0;
    call(PHYSDEV_OP, 6, (u64)&level, 0, 0);
    check("io-level.in-flags", call(VM_ASSIST, 0, 4, 0, 0), 0);
    TRY("inb $0x80, %%al", "i"(0));
    check("instruction.in-as-level-0", fault_vector, NO_FAULT);
    check("io-level.not-in-flags", call(VM_ASSIST, 1, 4, 0, 0), 0);
    TRY("inb $0x80, %%al", "i"(0));
    check("instruction.in-without-level-again", fault_vector, 13);
}

void check_events(void)
{
    struct { u32 first, second, port; } bind = { 0, 0, 0 };
    struct { u32 vcpu, port; } ipi = { 0, 0 };
    u32 port = 999;
    u64 taken;
    check("event.callback", call(SET_CALLBACKS, (u64)stub_32, 0, (u64)stub_33, 0), 0);
    check("event.send-closed", call(EVENT_CHANNEL_OP, 4, (u64)&port, 0, 0), -EINVAL);
    port = -1;
    check("event.send-far-out", call(EVENT_CHANNEL_OP, 4, (u64)&port, 0, 0), -EINVAL);
    check("event.close-closed", call(EVENT_CHANNEL_OP, 3, (u64)&port, 0, 0), -EINVAL);
    check("event.unmask-closed", call(EVENT_CHANNEL_OP, 9, (u64)&port, 0, 0), -EINVAL);
    bind.first = 1000;
    check("event.no-such-interrupt", call(EVENT_CHANNEL_OP, 1, (u64)&bind, 0, 0), -EINVAL);
    bind.first = 0;
    bind.second = 5;
    check("event.no-such-vcpu", call(EVENT_CHANNEL_OP, 1, (u64)&bind, 0, 0), -ENOENT);
    bind.second = 0;
    check("event.timer", call(EVENT_CHANNEL_OP, 1, (u64)&bind, 0, 0), 0);
    check("event.timer-twice", call(EVENT_CHANNEL_OP, 1, (u64)&bind, 0, 0), -EEXIST);
    check("event.ipi", call(EVENT_CHANNEL_OP, 7, (u64)&ipi, 0, 0), 0);
    struct { u16 domain; u32 remote, local; } other = { 55, 1, 0 };
    check("event.no-such-domain", call(EVENT_CHANNEL_OP, 0, (u64)&other, 0, 0), -ESRCH);

    struct { u32 *ports; u32 count; u64 timeout; } poll = { &port, 1, 1 };
    port = 77;
    check("poll.unused-port", call(SCHED_OP, 3, (u64)&poll, 0, 0), 0);
    port = 4096;
    check("poll.no-such-port", call(SCHED_OP, 3, (u64)&poll, 0, 0), -EINVAL);

    port = ipi.port;
    check("event.send", call(EVENT_CHANNEL_OP, 4, (u64)&port, 0, 0), 0);
    check("event.masked-is-pending", ((volatile u64 *)(shared + 2048))[port >> 6] >> (port & 63) & 1, 1);
    check("event.masked-is-not-taken", events_taken, 0);
    check("event.unmask", call(EVENT_CHANNEL_OP, 9, (u64)&port, 0, 0), 0);
    check("event.upcall-masked", events_taken, 0);
    shared[1] = 0;
    call(XEN_VERSION, 0, 0, 0, 0); /* have it delivered */
    check("event.taken", events_taken, 1);
    check("event.mask-after", shared[1], 0);

    /* the timer, waited for */
    port = bind.port;
    call(EVENT_CHANNEL_OP, 9, (u64)&port, 0, 0);
    struct { u64 when; u32 flags; } shot = { 1, 1 };
    check("timer.in-the-past", call(VCPU_OP, 8, 0, (u64)&shot, 0), -62);
    shot.when = 3600000000000UL;
    check("timer.set", call(VCPU_OP, 8, 0, (u64)&shot, 0), 0);
    taken = events_taken;
    shared[1] = 1;
    check("timer.block", call(SCHED_OP, 1, 0, 0, 0), 0);
    check("timer.came", events_taken, taken + 1);
    shared[1] = 1;
}

void check_user(void)
{
    u8 *root = page(), *third = page(), *second = page(), *first = page(), *code = page(), *stack = page();
    u64 at = 0x400000;
    for (u64 index = 0; index < (u64)(user_code_end - user_code); index++)
        code[index] = user_code[index];
    ((u64 *)first)[at >> 12 & 511] = machine(code) << 12 | P | US | A;
    ((u64 *)first)[(at >> 12 & 511) + 1] = machine(stack) << 12 | DATA;
    ((u64 *)second)[at >> 21 & 511] = machine(first) << 12 | P | RW | US | A;
    ((u64 *)third)[0] = machine(second) << 12 | P | RW | US | A;
    ((u64 *)root)[0] = machine(third) << 12 | P | RW | US | A;
    set_entry(root, READ_ONLY);
    set_entry(third, READ_ONLY);
    set_entry(second, READ_ONLY);
    check("user.root-with-writable-table", extended(3, machine(root), 0), -EINVAL);
    set_entry(first, READ_ONLY);
    set_entry(code, READ_ONLY);
    check("user.root", extended(3, machine(root), 0), 0);
    check("user.base", extended(15, machine(root), 0), 0);
    check("user.kernel-stack", call(STACK_SWITCH, 0xe02b, (u64)page() + 4096, 0, 0), 0);
    run_user(at, at + 0x2000, 0);
    check("user.calls", user_calls, 3);
    check("user.argument-and-faults", user_value, 1234 + (14UL << 16) + (13UL << 16));
    check("user.no-base", extended(15, 0, 0), 0);

    /* user code in the kernel's own address space, as a small kernel may have it */
    u32 level = 3;
    check("user.kernels-root", extended(15, machine((void *)start->tables), 0), 0);
    set_entry(code, P | US | A);
    user_value = user_calls = 0;
    run_user((u64)code, (u64)stack + 4096, 0);
    check("user.shared-root", user_value, 1234 + (13UL << 16));
    call(PHYSDEV_OP, 6, (u64)&level, 0, 0);
    user_value = 0;
    run_user((u64)code, (u64)stack + 4096, 0);
    check("user.with-io-level", user_value, 1234);
    asm volatile("wrmsr" : : "a"(1), "d"(0), "c"(0x140) : "memory");
    user_value = 0;
    run_user((u64)code, (u64)stack + 4096, 0);
    check("user.cpuid-faults", user_value, 1234 + (13UL << 16));
    asm volatile("wrmsr" : : "a"(0), "d"(0), "c"(0x140) : "memory");
    level = 0;
    call(PHYSDEV_OP, 6, (u64)&level, 0, 0);
    set_entry(code, READ_ONLY);
    check("user.kernels-root-left", extended(15, 0, 0), 0);
    check("user.unpin", extended(4, machine(root), 0), 0);
    check("user.data-again", map(first, machine(first) << 12 | DATA), 0);
}
