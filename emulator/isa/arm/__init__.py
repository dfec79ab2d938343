"""ARMv7-A: what is sensitive in it, in A32 and in T32, and the architecture's own rules."""
