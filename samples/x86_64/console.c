/* The console: a 16550 at 0x3f8, polled, and just enough of printf. */
#include "kernel.h"

#define UART 0x3f8

void console_start(void)
{
	outb(UART + 1, 0);    /* no interrupts */
	outb(UART + 3, 0x80); /* divisor */
	outb(UART + 0, 1);
	outb(UART + 1, 0);
	outb(UART + 3, 3); /* 8n1 */
	outb(UART + 2, 7); /* FIFOs, cleared */
	outb(UART + 4, 3); /* DTR, RTS */
}

void put_char(char c)
{
	for (u32 i = 0; i < 1000000 && !(inb(UART + 5) & 0x20); i++)
		;
	outb(UART, c);
}

static void print_number(u64 v, u32 base)
{
	char digits[24];
	u32 n = 0;
	do
		digits[n++] = "0123456789abcdef"[v % base];
	while (v /= base);
	while (n)
		put_char(digits[--n]);
}

void print(const char *format, ...)
{
	__builtin_va_list arguments;
	__builtin_va_start(arguments, format);
	for (; *format; format++) {
		if (*format != '%') {
			put_char(*format);
			continue;
		}
		switch (*++format) {
		case 's':
			for (const char *s = __builtin_va_arg(arguments, const char *); *s; s++)
				put_char(*s);
			break;
		case 'd':
			print_number(__builtin_va_arg(arguments, u64), 10);
			break;
		case 'x':
			put_char('0');
			put_char('x');
			print_number(__builtin_va_arg(arguments, u64), 16);
			break;
		}
	}
	__builtin_va_end(arguments);
}
