	/* The image of user code, as it was linked. */
	.section .rodata
	.balign 4096
	.globl user_image, user_image_end
user_image:
	.incbin USER_IMAGE
user_image_end:
	.balign 4096
