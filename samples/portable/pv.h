/* Between pv.c and an instruction set's part of the para-virtual port. */
#ifndef PV_H
#define PV_H
#include "retrap.h"

struct frame { struct retrap_frame r; };

void pv_start(void);                                     /* handlers and their stack */
bool pv_drain(void);                                     /* store what is queued; whether something was */
void pv_set_entry(word pointer, retrap_entry value);     /* of the last level: queued */
void pv_set_entry_now(word pointer, retrap_entry value); /* of another level */

/* ---- the instruction set's ---- */
/* arch.h: PV_PC(frame), the instruction that a fault is of; PV_STACK, PV_NUMBER, PV_RESULT, PV_FIRST to PV_FOURTH: names in a frame of the stack pointer, of a system
 * call's number and result, and of arguments; HANDLER: how a handler takes the frame. */
word pv_kernel_root(void);
bool pv_system_call(struct frame *frame);     /* the architecture's own, done here */
void pv_code_changed(word address, word bytes);
#endif
