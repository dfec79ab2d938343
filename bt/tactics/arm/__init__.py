"""ARMv7: branches, literal pools and Thumb stretches, the templates of its fixups, and the ladder of a guest."""
