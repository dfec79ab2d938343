"""x86: the virtual CPU of a deprivileged guest, its descriptor tables, and the hypervisor that runs it."""
