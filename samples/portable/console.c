/* Just enough of printf, over the architecture's polled console. */
#include "kernel.h"

static void print_number(word v, u32 base)
{
	char digits[24];
	u32 n = 0;
	do
		digits[n++] = "0123456789abcdef"[v % base];
	while (v /= base);
	while (n)
		arch_put_char(digits[--n]);
}

void print(const char *format, ...)
{
	__builtin_va_list arguments;
	__builtin_va_start(arguments, format);
	for (; *format; format++) {
		if (*format != '%') {
			arch_put_char(*format);
			continue;
		}
		switch (*++format) {
		case 's':
			for (const char *s = __builtin_va_arg(arguments, const char *); *s; s++)
				arch_put_char(*s);
			break;
		case 'd':
			print_number(__builtin_va_arg(arguments, word), 10);
			break;
		case 'x':
			arch_put_char('0');
			arch_put_char('x');
			print_number(__builtin_va_arg(arguments, word), 16);
			break;
		}
	}
	__builtin_va_end(arguments);
}
