"""What stands in for sensitive instructions of x86: fixups, and the patches that lead to them.

Room: `bt/tactics`. `tactics` fulfils the protocol that every instruction set's rewriting does; `choose` climbs the
ladder for one site, `window` composes a fixup, `template` says what one is made of, the other modules make one each.
"""
