CC := mipsel-linux-gnu-gcc
LD := mipsel-linux-gnu-ld
OBJCOPY := mipsel-linux-gnu-objcopy
# ENDIAN=B builds it big-endian.
ENDIAN ?= L
KERNEL_FLAGS := -E$(ENDIAN) -mabi=32 -march=mips32r2 -mno-abicalls -msoft-float -G0 -mno-mips16
USER_FLAGS := $(KERNEL_FLAGS)
LINK_FLAGS := -E$(ENDIAN) -m elf32$(if $(filter B,$(ENDIAN)),b,l)tsmip
