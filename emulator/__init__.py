"""The machine: CPU engines, memory, buses, devices, boards and knowledge about instruction sets.

The lowest of the three packages. It does not know that it is virtualised: it runs an unmodified
image at full privilege, too, as the reference. It imports neither `paravirt` nor `bt`.
"""
