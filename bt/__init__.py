"""The toolchain: images, scanner, planner, rewriter, verifier and the command line.

The highest of the three packages; it may import `paravirt` and `emulator`, and they never import it.
"""
