"""What is known of particular guest kernels, as data and in one place each; optional, and never needed to be correct.

Room: `bt`. A module a kernel. Nothing outside this package names a kernel's function, table or structure.
"""
