/* The para-virtual interface of retrap as numbers. Printed by `retrap abi`; changes here are lost. */
#ifndef RETRAP_ASM_H
#define RETRAP_ASM_H

#define RETRAP_VERSION 0x10000 /* major << 16 | minor */
#define RETRAP_CALL_VERSION 0 /* () */
#define RETRAP_CALL_CONSOLE_WRITE 1 /* (address, bytes) */
#define RETRAP_CALL_CONSOLE_READ 2 /* (address, bytes) */
#define RETRAP_CALL_SET_TRAP_TABLE 3 /* (address, count) */
#define RETRAP_CALL_STACK_SWITCH 4 /* (stack) */
#define RETRAP_CALL_RETURN 5 /* (frame) */
#define RETRAP_CALL_EVENTS_DELIVER 6 /* () */
#define RETRAP_CALL_EVENT_SEND 7 /* (port) */
#define RETRAP_CALL_TIMER_SET 8 /* (microseconds, periodic) */
#define RETRAP_CALL_TIME 9 /* (address) */
#define RETRAP_CALL_YIELD 0xa /* () */
#define RETRAP_CALL_BLOCK 0xb /* () */
#define RETRAP_CALL_SHUTDOWN 0xc /* (status) */
#define RETRAP_CALL_MULTICALL 0xd /* (address, count) */
#define RETRAP_CALL_THREAD_REGISTER 0xe /* (value) */
#define RETRAP_CALL_CODE_CHANGED 0xf /* (address, bytes) */
#define RETRAP_CALL_PTE_UPDATE 0x10 /* (address, count) */
#define RETRAP_CALL_PTE_UPDATE_PAGE 0x11 /* (address, low, high) */
#define RETRAP_CALL_PIN 0x12 /* (table, level) */
#define RETRAP_CALL_UNPIN 0x13 /* (table) */
#define RETRAP_CALL_NEW_BASE 0x14 /* (root, part) */
#define RETRAP_CALL_FLUSH_PAGE 0x15 /* (address) */
#define RETRAP_CALL_FLUSH_ALL 0x16 /* () */
#define RETRAP_CALL_TABLE_OPEN 0x17 /* (table) */
#define RETRAP_CALL_TABLE_CLOSE 0x18 /* (table) */
#define RETRAP_CALL_PTE_READ 0x19 /* (address, count) */
#define RETRAP_ERROR_UNKNOWN_CALL 1
#define RETRAP_ERROR_INVALID 2
#define RETRAP_ERROR_BAD_ADDRESS 3
#define RETRAP_ERROR_REFUSED 4
#define RETRAP_ERROR_TOO_MUCH 5
#define RETRAP_ERROR_UNSUPPORTED 6
#define RETRAP_TRAP_PAGE_FAULT 0
#define RETRAP_TRAP_UNDEFINED 1
#define RETRAP_TRAP_PRIVILEGED 2
#define RETRAP_TRAP_BREAKPOINT 3
#define RETRAP_TRAP_FLOATING_POINT 4
#define RETRAP_TRAP_SYSTEM_CALL 5
#define RETRAP_TRAP_EVENT 6
#define RETRAP_TRAP_OTHER 7
#define RETRAP_TRAPS 8
#define RETRAP_PORT_TIMER 0
#define RETRAP_PORT_CONSOLE 1
#define RETRAP_PORT_OWN 8
#define RETRAP_PORTS 0x20
#define RETRAP_ACCESS_READ 0
#define RETRAP_ACCESS_WRITE 1
#define RETRAP_ACCESS_EXECUTE 2
#define RETRAP_ACCESS_PRESENT 4
#define RETRAP_STATE_USER 1
#define RETRAP_STATE_INTERRUPTS 2
#define RETRAP_MOST_BYTES 0x10000 /* of CONSOLE_WRITE and CONSOLE_READ */
#define RETRAP_MOST_ELEMENTS 0x1000 /* of MULTICALL and PTE_UPDATE */
#define RETRAP_NOTE_VERSION 1 /* type of the ELF note "retrap" whose description is the version */

#if defined(__x86_64__)
#define RETRAP_WORD 8 /* bytes */
#define RETRAP_CALL 0xffffffffffe00000 /* called */
#define RETRAP_RETURN 0xffffffffffe00020 /* jumped to: RETURN of the frame on top of the stack */
#define RETRAP_ROOM 0 /* bytes from the stack pointer to that frame */
#define RETRAP_SHARED 0xfffffffffffe0000 /* the shared page */
#define RETRAP_INTERRUPTS 0xfffffffffffe0000 /* the virtual interrupt flag */
#define RETRAP_INTERRUPTS_ON 0
#define RETRAP_INTERRUPTS_OFF 0xfffffffffffffe00
#define RETRAP_EVENTS 0xfffffffffffe0008 /* ports that are pending */
#define RETRAP_MASK 0xfffffffffffe0400 /* ports that are not delivered */
#define RETRAP_FPU 0xfffffffffffe0408 /* not 0: floating point is enabled */
#define RETRAP_FRAME_BYTES 0xb0
#define RETRAP_FRAME_RAX 0
#define RETRAP_FRAME_RCX 8
#define RETRAP_FRAME_RDX 0x10
#define RETRAP_FRAME_RBX 0x18
#define RETRAP_FRAME_RSP 0x20
#define RETRAP_FRAME_RBP 0x28
#define RETRAP_FRAME_RSI 0x30
#define RETRAP_FRAME_RDI 0x38
#define RETRAP_FRAME_R8 0x40
#define RETRAP_FRAME_R9 0x48
#define RETRAP_FRAME_R10 0x50
#define RETRAP_FRAME_R11 0x58
#define RETRAP_FRAME_R12 0x60
#define RETRAP_FRAME_R13 0x68
#define RETRAP_FRAME_R14 0x70
#define RETRAP_FRAME_R15 0x78
#define RETRAP_FRAME_PC 0x80
#define RETRAP_FRAME_FLAGS 0x88
#define RETRAP_FRAME_STATE 0x90
#define RETRAP_FRAME_TRAP 0x98
#define RETRAP_FRAME_DETAIL 0xa0
#define RETRAP_FRAME_ADDRESS 0xa8
#elif defined(__i386__)
#define RETRAP_WORD 4 /* bytes */
#define RETRAP_CALL 0xff200000 /* called */
#define RETRAP_RETURN 0xff200020 /* jumped to: RETURN of the frame on top of the stack */
#define RETRAP_ROOM 0 /* bytes from the stack pointer to that frame */
#define RETRAP_SHARED 0xff3e0000 /* the shared page */
#define RETRAP_INTERRUPTS 0xff3e0000 /* the virtual interrupt flag */
#define RETRAP_INTERRUPTS_ON 0
#define RETRAP_INTERRUPTS_OFF 0xfffffe00
#define RETRAP_EVENTS 0xff3e0008 /* ports that are pending */
#define RETRAP_MASK 0xff3e0400 /* ports that are not delivered */
#define RETRAP_FPU 0xff3e0408 /* not 0: floating point is enabled */
#define RETRAP_FRAME_BYTES 0x38
#define RETRAP_FRAME_EAX 0
#define RETRAP_FRAME_ECX 4
#define RETRAP_FRAME_EDX 8
#define RETRAP_FRAME_EBX 0xc
#define RETRAP_FRAME_ESP 0x10
#define RETRAP_FRAME_EBP 0x14
#define RETRAP_FRAME_ESI 0x18
#define RETRAP_FRAME_EDI 0x1c
#define RETRAP_FRAME_PC 0x20
#define RETRAP_FRAME_FLAGS 0x24
#define RETRAP_FRAME_STATE 0x28
#define RETRAP_FRAME_TRAP 0x2c
#define RETRAP_FRAME_DETAIL 0x30
#define RETRAP_FRAME_ADDRESS 0x34
#elif defined(__aarch64__)
#define RETRAP_WORD 8 /* bytes */
#define RETRAP_CALL 0xffff800007e00000 /* called */
#define RETRAP_RETURN 0xffff800007e00020 /* jumped to: RETURN of the frame on top of the stack */
#define RETRAP_ROOM 0 /* bytes from the stack pointer to that frame */
#define RETRAP_SHARED 0xffff800007fff000 /* the shared page */
#define RETRAP_INTERRUPTS 0xffff800007fff000 /* the virtual interrupt flag */
#define RETRAP_INTERRUPTS_ON 0
#define RETRAP_INTERRUPTS_OFF 0x80
#define RETRAP_EVENTS 0xffff800007fff008 /* ports that are pending */
#define RETRAP_MASK 0xffff800007fff400 /* ports that are not delivered */
#define RETRAP_FPU 0xffff800007fff408 /* not 0: floating point is enabled */
#define RETRAP_FRAME_BYTES 0x130
#define RETRAP_FRAME_X0 0
#define RETRAP_FRAME_X1 8
#define RETRAP_FRAME_X2 0x10
#define RETRAP_FRAME_X3 0x18
#define RETRAP_FRAME_X4 0x20
#define RETRAP_FRAME_X5 0x28
#define RETRAP_FRAME_X6 0x30
#define RETRAP_FRAME_X7 0x38
#define RETRAP_FRAME_X8 0x40
#define RETRAP_FRAME_X9 0x48
#define RETRAP_FRAME_X10 0x50
#define RETRAP_FRAME_X11 0x58
#define RETRAP_FRAME_X12 0x60
#define RETRAP_FRAME_X13 0x68
#define RETRAP_FRAME_X14 0x70
#define RETRAP_FRAME_X15 0x78
#define RETRAP_FRAME_X16 0x80
#define RETRAP_FRAME_X17 0x88
#define RETRAP_FRAME_X18 0x90
#define RETRAP_FRAME_X19 0x98
#define RETRAP_FRAME_X20 0xa0
#define RETRAP_FRAME_X21 0xa8
#define RETRAP_FRAME_X22 0xb0
#define RETRAP_FRAME_X23 0xb8
#define RETRAP_FRAME_X24 0xc0
#define RETRAP_FRAME_X25 0xc8
#define RETRAP_FRAME_X26 0xd0
#define RETRAP_FRAME_X27 0xd8
#define RETRAP_FRAME_X28 0xe0
#define RETRAP_FRAME_X29 0xe8
#define RETRAP_FRAME_X30 0xf0
#define RETRAP_FRAME_SP 0xf8
#define RETRAP_FRAME_PC 0x100
#define RETRAP_FRAME_FLAGS 0x108
#define RETRAP_FRAME_STATE 0x110
#define RETRAP_FRAME_TRAP 0x118
#define RETRAP_FRAME_DETAIL 0x120
#define RETRAP_FRAME_ADDRESS 0x128
#elif defined(__arm__)
#define RETRAP_WORD 4 /* bytes */
#define RETRAP_CALL 0xbfc00000 /* called */
#define RETRAP_RETURN 0xbfc00020 /* jumped to: RETURN of the frame on top of the stack */
#define RETRAP_ROOM 0 /* bytes from the stack pointer to that frame */
#define RETRAP_SHARED 0xbfdfe000 /* the shared page */
#define RETRAP_INTERRUPTS 0xbfdfe000 /* the virtual interrupt flag */
#define RETRAP_INTERRUPTS_ON 0
#define RETRAP_INTERRUPTS_OFF 0x80
#define RETRAP_EVENTS 0xbfdfe004 /* ports that are pending */
#define RETRAP_MASK 0xbfdfe400 /* ports that are not delivered */
#define RETRAP_FPU 0xbfdfe408 /* not 0: floating point is enabled */
#define RETRAP_FRAME_BYTES 0x54
#define RETRAP_FRAME_R0 0
#define RETRAP_FRAME_R1 4
#define RETRAP_FRAME_R2 8
#define RETRAP_FRAME_R3 0xc
#define RETRAP_FRAME_R4 0x10
#define RETRAP_FRAME_R5 0x14
#define RETRAP_FRAME_R6 0x18
#define RETRAP_FRAME_R7 0x1c
#define RETRAP_FRAME_R8 0x20
#define RETRAP_FRAME_R9 0x24
#define RETRAP_FRAME_R10 0x28
#define RETRAP_FRAME_R11 0x2c
#define RETRAP_FRAME_R12 0x30
#define RETRAP_FRAME_R13 0x34
#define RETRAP_FRAME_R14 0x38
#define RETRAP_FRAME_PC 0x3c
#define RETRAP_FRAME_FLAGS 0x40
#define RETRAP_FRAME_STATE 0x44
#define RETRAP_FRAME_TRAP 0x48
#define RETRAP_FRAME_DETAIL 0x4c
#define RETRAP_FRAME_ADDRESS 0x50
#elif defined(__mips__)
#define RETRAP_WORD 4 /* bytes */
#define RETRAP_CALL 0xfff88000 /* called */
#define RETRAP_RETURN 0xfff88020 /* jumped to: RETURN of the frame on top of the stack */
#define RETRAP_ROOM 0x10 /* bytes from the stack pointer to that frame */
#define RETRAP_SHARED 0xffff8000 /* the shared page */
#define RETRAP_INTERRUPTS 0xffff8000 /* the virtual interrupt flag */
#define RETRAP_INTERRUPTS_ON 1
#define RETRAP_INTERRUPTS_OFF 0
#define RETRAP_EVENTS 0xffff8004 /* ports that are pending */
#define RETRAP_MASK 0xffff8400 /* ports that are not delivered */
#define RETRAP_FPU 0xffff8408 /* not 0: floating point is enabled */
#define RETRAP_FRAME_BYTES 0x9c
#define RETRAP_FRAME_R1 0
#define RETRAP_FRAME_R2 4
#define RETRAP_FRAME_R3 8
#define RETRAP_FRAME_R4 0xc
#define RETRAP_FRAME_R5 0x10
#define RETRAP_FRAME_R6 0x14
#define RETRAP_FRAME_R7 0x18
#define RETRAP_FRAME_R8 0x1c
#define RETRAP_FRAME_R9 0x20
#define RETRAP_FRAME_R10 0x24
#define RETRAP_FRAME_R11 0x28
#define RETRAP_FRAME_R12 0x2c
#define RETRAP_FRAME_R13 0x30
#define RETRAP_FRAME_R14 0x34
#define RETRAP_FRAME_R15 0x38
#define RETRAP_FRAME_R16 0x3c
#define RETRAP_FRAME_R17 0x40
#define RETRAP_FRAME_R18 0x44
#define RETRAP_FRAME_R19 0x48
#define RETRAP_FRAME_R20 0x4c
#define RETRAP_FRAME_R21 0x50
#define RETRAP_FRAME_R22 0x54
#define RETRAP_FRAME_R23 0x58
#define RETRAP_FRAME_R24 0x5c
#define RETRAP_FRAME_R25 0x60
#define RETRAP_FRAME_R26 0x64
#define RETRAP_FRAME_R27 0x68
#define RETRAP_FRAME_R28 0x6c
#define RETRAP_FRAME_R29 0x70
#define RETRAP_FRAME_R30 0x74
#define RETRAP_FRAME_R31 0x78
#define RETRAP_FRAME_HI 0x7c
#define RETRAP_FRAME_LO 0x80
#define RETRAP_FRAME_PC 0x84
#define RETRAP_FRAME_FLAGS 0x88
#define RETRAP_FRAME_STATE 0x8c
#define RETRAP_FRAME_TRAP 0x90
#define RETRAP_FRAME_DETAIL 0x94
#define RETRAP_FRAME_ADDRESS 0x98
#else
#error "retrap has no para-virtual interface for this instruction set"
#endif
#endif
