"""What each hypercall of Xen's interface does, a file for each subject; `paravirt.xen.table` has them by number."""
