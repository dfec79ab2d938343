/* The para-virtual interface of retrap, for the kernels that are ported to it. Printed by `retrap abi`; changes here are lost. */
#ifndef RETRAP_H
#define RETRAP_H
#include "retrap_asm.h"
#ifndef __ASSEMBLER__

typedef unsigned long retrap_word;
typedef unsigned long long retrap_entry;
/* An element of MULTICALL, and one of PTE_UPDATE. */
struct retrap_element { retrap_word number, result, arguments[4]; };
struct retrap_update { retrap_entry pointer, value; };

#if defined(__x86_64__)
struct retrap_frame {
	retrap_word rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
	retrap_word pc, flags, state, trap, detail, address;
};
static inline retrap_word retrap_call(retrap_word number, retrap_word a, retrap_word b, retrap_word c,
	retrap_word d)
{
	register retrap_word number_ asm("rax") = number;
	register retrap_word a_ asm("rdi") = a;
	register retrap_word b_ asm("rsi") = b;
	register retrap_word c_ asm("rdx") = c;
	register retrap_word d_ asm("r10") = d;
	asm volatile("call *%1" : "+r"(number_) : "r"((retrap_word)RETRAP_CALL), "r"(a_), "r"(b_), "r"(c_), "r"(d_)
		: "memory", "cc");
	return number_;
}
#elif defined(__i386__)
struct retrap_frame {
	retrap_word eax, ecx, edx, ebx, esp, ebp, esi, edi;
	retrap_word pc, flags, state, trap, detail, address;
};
static inline retrap_word retrap_call(retrap_word number, retrap_word a, retrap_word b, retrap_word c,
	retrap_word d)
{
	register retrap_word number_ asm("eax") = number;
	register retrap_word a_ asm("ebx") = a;
	register retrap_word b_ asm("ecx") = b;
	register retrap_word c_ asm("edx") = c;
	register retrap_word d_ asm("esi") = d;
	asm volatile("call *%1" : "+r"(number_) : "r"((retrap_word)RETRAP_CALL), "r"(a_), "r"(b_), "r"(c_), "r"(d_)
		: "memory", "cc");
	return number_;
}
#elif defined(__aarch64__)
struct retrap_frame {
	retrap_word x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15, x16, x17, x18, x19, x20, x21,
		x22, x23, x24, x25, x26, x27, x28, x29, x30, sp;
	retrap_word pc, flags, state, trap, detail, address;
};
static inline retrap_word retrap_call(retrap_word number, retrap_word a, retrap_word b, retrap_word c,
	retrap_word d)
{
	register retrap_word number_ asm("x8") = number;
	register retrap_word a_ asm("x0") = a;
	register retrap_word b_ asm("x1") = b;
	register retrap_word c_ asm("x2") = c;
	register retrap_word d_ asm("x3") = d;
	asm volatile("blr %1" : "+r"(a_) : "r"((retrap_word)RETRAP_CALL), "r"(number_), "r"(b_), "r"(c_), "r"(d_)
		: "memory", "cc", "x30");
	return a_;
}
#elif defined(__arm__)
struct retrap_frame {
	retrap_word r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14;
	retrap_word pc, flags, state, trap, detail, address;
};
static inline retrap_word retrap_call(retrap_word number, retrap_word a, retrap_word b, retrap_word c,
	retrap_word d)
{
	register retrap_word number_ asm("r12") = number;
	register retrap_word a_ asm("r0") = a;
	register retrap_word b_ asm("r1") = b;
	register retrap_word c_ asm("r2") = c;
	register retrap_word d_ asm("r3") = d;
	asm volatile("blx %1" : "+r"(a_) : "r"((retrap_word)RETRAP_CALL), "r"(number_), "r"(b_), "r"(c_), "r"(d_)
		: "memory", "cc", "r14");
	return a_;
}
#elif defined(__mips__)
struct retrap_frame {
	retrap_word r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15, r16, r17, r18, r19, r20, r21, r22,
		r23, r24, r25, r26, r27, r28, r29, r30, r31, hi, lo;
	retrap_word pc, flags, state, trap, detail, address;
};
static inline retrap_word retrap_call(retrap_word number, retrap_word a, retrap_word b, retrap_word c,
	retrap_word d)
{
	register retrap_word number_ asm("$2") = number;
	register retrap_word a_ asm("$4") = a;
	register retrap_word b_ asm("$5") = b;
	register retrap_word c_ asm("$6") = c;
	register retrap_word d_ asm("$7") = d;
	asm volatile(".set push; .set noreorder; jalr %1; nop; .set pop" : "+r"(number_) : "r"((retrap_word)RETRAP_CALL), "r"(a_), "r"(b_), "r"(c_), "r"(d_)
		: "memory", "$31");
	return number_;
}
#endif

/* Which version of this interface there is.
 * Gives major << 16 | minor. */
static inline retrap_word retrap_version(void)
{
	return retrap_call(RETRAP_CALL_VERSION, 0, 0, 0, 0);
}
/* Print bytes on the console.
 * Gives bytes printed. */
static inline retrap_word retrap_console_write(retrap_word address, retrap_word bytes)
{
	return retrap_call(RETRAP_CALL_CONSOLE_WRITE, address, bytes, 0, 0);
}
/* Take what was typed and not yet taken.
 * Gives bytes stored, perhaps 0. */
static inline retrap_word retrap_console_read(retrap_word address, retrap_word bytes)
{
	return retrap_call(RETRAP_CALL_CONSOLE_READ, address, bytes, 0, 0);
}
/* Where the guest is entered: `count` words at `address`, the handler of each `Trap` in turn; 0 for
 * none. An event for which there is no handler ends the guest.
 * Gives 0. */
static inline retrap_word retrap_set_trap_table(retrap_word address, retrap_word count)
{
	return retrap_call(RETRAP_CALL_SET_TRAP_TABLE, address, count, 0, 0);
}
/* The end of the stack on which frames are put when user code is interrupted.
 * Gives 0. */
static inline retrap_word retrap_stack_switch(retrap_word stack)
{
	return retrap_call(RETRAP_CALL_STACK_SWITCH, stack, 0, 0, 0);
}
/* Go on as the frame at `frame` says, in the kernel or in user code, with interrupts as it says.
 * Gives none: it does not return unless it fails. */
static inline retrap_word retrap_return(retrap_word frame)
{
	return retrap_call(RETRAP_CALL_RETURN, frame, 0, 0, 0);
}
/* Deliver what is pending; for a guest that has enabled interrupts and finds the pending word not
 * zero.
 * Gives 0. */
static inline retrap_word retrap_events_deliver(void)
{
	return retrap_call(RETRAP_CALL_EVENTS_DELIVER, 0, 0, 0, 0);
}
/* Make an event of a port of one's own (`FIRST_OWN_PORT` and above) pending.
 * Gives 0. */
static inline retrap_word retrap_event_send(retrap_word port)
{
	return retrap_call(RETRAP_CALL_EVENT_SEND, port, 0, 0, 0);
}
/* The virtual timer's event comes once, or again and again (`periodic` not 0), in so many
 * microseconds; 0 stops it.
 * Gives 0. */
static inline retrap_word retrap_timer_set(retrap_word microseconds, retrap_word periodic)
{
	return retrap_call(RETRAP_CALL_TIMER_SET, microseconds, periodic, 0, 0);
}
/* Store the virtual time, nanoseconds in 64 bits.
 * Gives 0. */
static inline retrap_word retrap_time(retrap_word address)
{
	return retrap_call(RETRAP_CALL_TIME, address, 0, 0, 0);
}
/* Let others run; the guest stays ready.
 * Gives 0. */
static inline retrap_word retrap_yield(void)
{
	return retrap_call(RETRAP_CALL_YIELD, 0, 0, 0, 0);
}
/* Wait until an event is pending that is not masked, whether interrupts are enabled or not. A wait
 * that nothing can end ends the guest.
 * Gives 0. */
static inline retrap_word retrap_block(void)
{
	return retrap_call(RETRAP_CALL_BLOCK, 0, 0, 0, 0);
}
/* End the guest; status 0 is success.
 * Gives none. */
static inline retrap_word retrap_shutdown(retrap_word status)
{
	return retrap_call(RETRAP_CALL_SHUTDOWN, status, 0, 0, 0);
}
/* Do `count` calls, each an element of number, result, and four arguments (words); every result is
 * stored. A failing element does not end the rest.
 * Gives elements done. */
static inline retrap_word retrap_multicall(retrap_word address, retrap_word count)
{
	return retrap_call(RETRAP_CALL_MULTICALL, address, count, 0, 0);
}
/* What user code finds its thread by.
 * Gives 0. */
static inline retrap_word retrap_thread_register(retrap_word value)
{
	return retrap_call(RETRAP_CALL_THREAD_REGISTER, value, 0, 0, 0);
}
/* Code was written; it is about to be executed.
 * Gives 0. */
static inline retrap_word retrap_code_changed(retrap_word address, retrap_word bytes)
{
	return retrap_call(RETRAP_CALL_CODE_CHANGED, address, bytes, 0, 0);
}
/* Store `count` page-table entries, in order: elements of two 64-bit words, the guest-physical address
 * of the entry and its new value. It ends at the first that is refused.
 * Gives entries stored; fewer than `count`: the next one is refused, and alone gives the reason. */
static inline retrap_word retrap_pte_update(retrap_word address, retrap_word count)
{
	return retrap_call(RETRAP_CALL_PTE_UPDATE, address, count, 0, 0);
}
/* Store the last-level entry that translates `address` in the current address space, `low | high <<
 * 32` on 32-bit sets and `low` on 64-bit ones, and flush that page.
 * Gives 0. */
static inline retrap_word retrap_pte_update_page(retrap_word address, retrap_word low, retrap_word high)
{
	return retrap_call(RETRAP_CALL_PTE_UPDATE_PAGE, address, low, high, 0);
}
/* The guest-physical page `table` stays a page table of `level` (1: last).
 * Gives 0. */
static inline retrap_word retrap_pin(retrap_word table, retrap_word level)
{
	return retrap_call(RETRAP_CALL_PIN, table, level, 0, 0);
}
/* It need not stay one.
 * Gives 0. */
static inline retrap_word retrap_unpin(retrap_word table)
{
	return retrap_call(RETRAP_CALL_UNPIN, table, 0, 0, 0);
}
/* Switch to the address space of this root, as the processor's register would hold it. `part` is 0, or
 * 1 for the kernel's half where that has a root of its own (AArch64, Arm, MIPS). Where a guest starts
 * without translation, its first whole address space begins it.
 * Gives 0. */
static inline retrap_word retrap_new_base(retrap_word root, retrap_word part)
{
	return retrap_call(RETRAP_CALL_NEW_BASE, root, part, 0, 0);
}
/* Forget the translation of one page.
 * Gives 0. */
static inline retrap_word retrap_flush_page(retrap_word address)
{
	return retrap_call(RETRAP_CALL_FLUSH_PAGE, address, 0, 0, 0);
}
/* Forget all translations.
 * Gives 0. */
static inline retrap_word retrap_flush_all(void)
{
	return retrap_call(RETRAP_CALL_FLUSH_ALL, 0, 0, 0, 0);
}
/* Unhook the last-level table at a guest-physical address from the address spaces: the guest may write
 * it as memory, and nothing is translated by it.
 * Gives 0. */
static inline retrap_word retrap_table_open(retrap_word table)
{
	return retrap_call(RETRAP_CALL_TABLE_OPEN, table, 0, 0, 0);
}
/* Check the opened table as a whole and hook it in again.
 * Gives 0. */
static inline retrap_word retrap_table_close(retrap_word table)
{
	return retrap_call(RETRAP_CALL_TABLE_CLOSE, table, 0, 0, 0);
}
/* Read `count` page-table entries: elements as PTE_UPDATE's, whose values are stored, each as the
 * guest would have written it.
 * Gives entries read: all of them. */
static inline retrap_word retrap_pte_read(retrap_word address, retrap_word count)
{
	return retrap_call(RETRAP_CALL_PTE_READ, address, count, 0, 0);
}
/* The virtual interrupt flag: no call but where an event waits. */
#define RETRAP_SHARED_WORD(at) (*(volatile retrap_word *)(at))
static inline void retrap_interrupts_off(void) { RETRAP_SHARED_WORD(RETRAP_INTERRUPTS) = RETRAP_INTERRUPTS_OFF; }
static inline int retrap_interrupts_enabled(void)
{
	return RETRAP_SHARED_WORD(RETRAP_INTERRUPTS) == RETRAP_INTERRUPTS_ON;
}
static inline void retrap_interrupts_on(void)
{
	asm volatile("" : : : "memory");
	RETRAP_SHARED_WORD(RETRAP_INTERRUPTS) = RETRAP_INTERRUPTS_ON;
	if (RETRAP_SHARED_WORD(RETRAP_EVENTS) & ~RETRAP_SHARED_WORD(RETRAP_MASK))
		retrap_events_deliver();
}
static inline void retrap_floating_point(retrap_word enabled) { RETRAP_SHARED_WORD(RETRAP_FPU) = enabled; }
#endif
#endif
