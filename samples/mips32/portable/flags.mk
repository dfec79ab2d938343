CC := mipsel-linux-gnu-gcc
LD := mipsel-linux-gnu-ld
OBJCOPY := mipsel-linux-gnu-objcopy
KERNEL_FLAGS := -EL -mabi=32 -march=mips32r2 -mno-abicalls -msoft-float -G0 -mno-mips16
USER_FLAGS := $(KERNEL_FLAGS)
LINK_FLAGS := -EL -m elf32ltsmip
