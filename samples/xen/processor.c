/* What Xen does of a processor for a deprivileged kernel: returns that fail, stack faults, bases of segments, CPUID that
 * faults, and breakpoints of data. */
#include "guest.h"

long return_by(u64 cs, u64 ss);

static volatile u64 watched[2];
extern volatile u64 resume, resumed;
static u32 flat_stack = 0xe02b;

static void check_returns(void)
{
    fault_vector = 256;
    return_by(0xe030, 0xe02b);
    check("return.good", fault_vector, NO_FAULT);
    return_by(0x6660, 0xe02b);
    check("return.no-such-code", fault_vector << 16 | fault_error, 13UL << 16 | 0x6660);
    return_by(0xe028, 0xe02b);
    check("return.data-as-code", fault_vector << 16 | fault_error, 13UL << 16 | 0xe028);
    return_by(0xe030, 0xe030);
    check("return.code-as-stack", fault_vector << 16 | fault_error, 13UL << 16 | 0xe030);
    fault_vector = 256;
    return_by(0xe030, 0);
    check("return.no-stack-segment", fault_vector << 16 | fault_error, 13UL << 16);
}

#define BY_RBP(code) \
    do { \
        fault_vector = 256; \
        asm volatile("movq %%rbp, %%rbx\n\tmovq %0, %%rbp\n\tmovq $1f, fixup(%%rip)\n\t" code \
                     "\n1:\tmovq %%rbx, %%rbp\n\tmovq $0, fixup(%%rip)" : : "a"(NOT_CANONICAL) : "rbx", "memory"); \
    } while (0)

static void check_stack_faults(void)
{
    BY_RBP("movb (%%rbp), %%al");
    check("stack.by-rbp", fault_vector << 16 | fault_error, 12UL << 16);
    BY_RBP("movb %%ds:(%%rbp), %%al");
    check("stack.prefix-does-not-matter", fault_vector, 12);
    BY_RBP("movb %%fs:(%%rbp), %%al");
    check("stack.fs-is-another", fault_vector, 13);
    BY_RBP("movb %%ss:(%%rax), %%al");
    check("stack.nor-does-that-of-ss", fault_vector, 13);
    BY_RBP("pushq (%%rax)");
    check("stack.operand-of-push", fault_vector, 13);
}

static void check_bases(void)
{
    u64 value = 0;
    TRY("rdfsbase %%rax", "i"(0));
    check("base.instruction-off", fault_vector, 6);
    TRY("movq %%cr4, %%rax\n\torq $0x10000, %%rax\n\tmovq %%rax, %%cr4", "i"(0));
    check("base.turned-on", fault_vector, NO_FAULT);
    asm volatile("movq %%cr4, %0" : "=r"(value));
    check("base.in-cr4", value >> 16 & 1, 1);
    TRY("wrfsbase %0", "r"(0x00007ffffffff000UL));
    check("base.write", fault_vector, NO_FAULT);
    TRY("rdfsbase %%rax\n\tmovq %%rax, user_value(%%rip)", "i"(0));
    check("base.read", user_value, 0x00007ffffffff000L);
    TRY("movl $0x1234, %%eax\n\twrgsbase %%eax\n\trdgsbase %%rdx\n\tmovq %%rdx, user_value(%%rip)", "i"(0));
    check("base.read-of-gs", user_value, 0x1234);
    TRY("wrfsbase %0", "r"(NOT_CANONICAL));
    check("base.not-canonical-faults", fault_vector, 13);
    TRY("xorl %%eax, %%eax\n\twrgsbase %%rax\n\twrfsbase %%rax", "i"(0));
    TRY("movq %%cr4, %%rax\n\tandq $~0x10000, %%rax\n\tmovq %%rax, %%cr4\n\trdgsbase %%rax", "i"(0));
    check("base.turned-off", fault_vector, 6);
}

static void check_identify(void)
{
    TRY("movl $0x140, %%ecx\n\tmovl $3, %%eax\n\txorl %%edx, %%edx\n\twrmsr", "i"(0));
    check("identify.unknown-bit", fault_vector, 13);
    TRY("movl $0x140, %%ecx\n\tmovl $1, %%eax\n\txorl %%edx, %%edx\n\twrmsr\n\tcpuid", "i"(0));
    check("identify.kernel-does-not-fault", fault_vector, NO_FAULT);
    TRY("movl $0x140, %%ecx\n\txorl %%eax, %%eax\n\txorl %%edx, %%edx\n\twrmsr", "i"(0));
}

static void check_breakpoints(void)
{
    TRY("movl $0x1d9, %%ecx\n\trdmsr\n\tmovq %%rax, user_value(%%rip)", "i"(0));
    check("break.branches-are-not-recorded", fault_vector << 8 | user_value, NO_FAULT << 8);
    check("break.address", call(SET_DEBUGREG, 0, (u64)watched, 0, 0), 0);
    check("break.second-address", call(SET_DEBUGREG, 1, (u64)&watched[1], 0, 0), 0);
    check("break.control", call(SET_DEBUGREG, 7, 2UL << 0 | 2UL << 2 | 0xdUL << 16 | 0xfUL << 20, 0, 0), 0); /* 4 bytes, writes; reads and writes */
    call(SET_DEBUGREG, 6, 0, 0, 0);
    TRY("movl (%0), %%eax", "r"(watched));
    check("break.not-by-a-read", fault_vector, NO_FAULT);
    TRY("movb $5, 3(%0)\n\tmovb $6, 4(%0)", "r"(watched));
    check("break.by-a-write", fault_vector, 1);
    check("break.is-told", call(GET_DEBUGREG, 6, 0, 0, 0) & 0xf, 1);
    check("break.behind-its-instruction", watched[0] >> 24, 5);
    call(SET_DEBUGREG, 6, 0, 0, 0);
    TRY("movq (%0), %%rax", "r"(&watched[1]));
    check("break.by-a-read", fault_vector << 8 | (call(GET_DEBUGREG, 6, 0, 0, 0) & 0xf), 1 << 8 | 2);
    check("break.stack-segment", call(SET_DEBUGREG, 1, (u64)&flat_stack, 0, 0), 0);
    user_value = 0;
    TRY("movw (%0), %%ss\n\tincl user_value(%%rip)\n\tincl user_value(%%rip)", "r"(&flat_stack));
    check("break.held-back-by-ss", fault_vector << 8 | user_value, 1 << 8 | 1);
    TRY("movw (%0), %%ss\n\tint $100", "r"(&flat_stack));
    check("break.dropped-by-an-entry", fault_vector, 100);
    u64 code;
    asm volatile("leaq 1f(%%rip), %0\n\tjmp 2f\n1:\tincl user_value(%%rip)\n\tret\n2:" : "=r"(code));
    check("break.code-address", call(SET_DEBUGREG, 2, code, 0, 0), 0);
    check("break.of-code", call(SET_DEBUGREG, 7, 2UL << 4, 0, 0), 0);
    call(SET_DEBUGREG, 6, 0, 0, 0);
    user_value = 0;
    resumed = 0;
    TRY("callq *%0", "r"(code));
    check("break.before-the-instruction", fault_vector << 8 | user_value, 1 << 8);
    check("break.of-code-is-told", call(GET_DEBUGREG, 6, 0, 0, 0) & 0xf, 4);
    asm volatile("addq $8, %%rsp" : : : "memory"); /* the call's return address: it was never used */
    resume = 1;
    asm volatile("callq *%0" : : "r"(code) : "memory");
    check("break.passed-by-rf", resumed << 8 | user_value, 1 << 8 | 1);
    asm volatile("movl $2, %%ebx\n3:\tcallq *%0\n\tdecl %%ebx\n\tjnz 3b" : : "r"(code) : "rbx", "memory");
    check("break.each-time", resumed << 8 | user_value, 3 << 8 | 3);
    resume = 0;
    call(SET_DEBUGREG, 7, 0xdUL << 16 | 0xfUL << 20 | 2UL << 0 | 2UL << 2, 0, 0);
    check("break.of-a-port-without-cr4", call(SET_DEBUGREG, 7, 2 | 0xeUL << 16, 0, 0), -EPERM);
    check("break.of-long-code", call(SET_DEBUGREG, 7, 2 | 0xcUL << 16, 0, 0), -EPERM);
    check("break.general-detect", call(SET_DEBUGREG, 7, 1UL << 13, 0, 0), -EPERM);
    check("break.refused-is-not-kept", call(GET_DEBUGREG, 7, 0, 0, 0), 2UL << 0 | 2UL << 2 | 0xdUL << 16 | 0xfUL << 20 | 0x400);
    TRY("movq %%cr4, %%rax\n\torq $8, %%rax\n\tmovq %%rax, %%cr4", "i"(0));
    check("break.of-a-port", call(SET_DEBUGREG, 7, 2 | 0xeUL << 16, 0, 0), 0);
    TRY("movq %%cr4, %%rax\n\tandq $~8, %%rax\n\tmovq %%rax, %%cr4", "i"(0));
    check("break.off", call(SET_DEBUGREG, 7, 0, 0, 0), 0);
    TRY("movb $5, (%0)", "r"(watched));
    check("break.not-any-more", fault_vector, NO_FAULT);
}

void check_processor(void)
{
    check_returns();
    check_stack_faults();
    check_bases();
    check_identify();
    check_breakpoints();
}
