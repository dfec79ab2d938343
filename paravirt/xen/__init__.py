"""A hypervisor that offers Xen's para-virtual interface for x86-64: a stock kernel needs no port and no rewriting."""
