"""Which run the others are held against: the guest at full privilege, or where that cannot be had, with traps alone.

Room: `bt/verify`. A run with traps alone has no fixup and no generated code that could be wrong; each of its operations
is done by the functions that the instruction set's proofs hold against the manual, and the exits are the processor's
own. It is a weaker reference, for a wrong trap is in it as well; so every report says which one it was.
"""

from __future__ import annotations

from emulator.native import NATIVES

FULL_PRIVILEGE, TRAP_ONLY = "native", "trap"


def reference_mode(isa: str) -> str:
    """The mode of the reference run of an instruction set's guests."""
    return FULL_PRIVILEGE if isa in NATIVES else TRAP_ONLY


def explain(mode: str, isa: str) -> str:
    """What a reference run of that mode is, in one clause."""
    if mode == FULL_PRIVILEGE:
        return "at full privilege, unmodified, without a hypervisor"
    return (
        f"with traps alone under the hypervisor, for no engine runs whole {isa} guests at full privilege; a wrong trap "
        "is seen by its checks and beside QEMU, not here"
    )
