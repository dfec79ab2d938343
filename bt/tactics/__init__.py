"""The ladder of tactics: what can be put in a sensitive instruction's place, cheapest first, the trap last.

Room: `bt`, the rewriting side. `template` says what a fixup is made of, the other modules make one each; `choose`
climbs the ladder for one site and says why a better rung was refused.
"""
