"""ARMv7-A guests: a processor with banked registers and modes, deprivileged to User mode in two worlds."""
