CC := gcc
LD := ld
OBJCOPY := objcopy
KERNEL_FLAGS := -m32 -march=i686 -mgeneral-regs-only -fcf-protection=none
USER_FLAGS := -m32 -march=i686 -mgeneral-regs-only -fcf-protection=none
LINK_FLAGS := -m elf_i386
