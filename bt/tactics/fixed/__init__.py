"""What the instruction sets with fixed-width encodings have in common: sweep, page scans, branch to a fixup, veneer.

Room: `bt/tactics`. `words` finds, `body` is a fixup without an address, `ladder` climbs, `tactics` joins them; an
instruction set adds its branches, its templates and what it knows of its kernels.
"""
