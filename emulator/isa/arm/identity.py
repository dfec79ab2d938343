"""What the processor shown to ARMv7 guests is: a Cortex-A7 without what a deprivileged guest is not given.

Room: `emulator/isa/arm`. Identification registers that are shown otherwise than the engine's processor has them, at
full privilege and under the hypervisor alike: a kernel chooses code by them.
"""

from typing import Final

IDENTITY: Final[dict[str, int]] = {
    "CLIDR": 0,  # no cache to be maintained by set and way
    "CCSIDR": 0xE007_E01A,
    "ID_PFR1": 0x0001_0001,  # the generic timer; neither Hyp nor Secure state
    "MPIDR": 0x8000_0000,
    "DBGOSDLR": 0,  # the debug registers have power
}
"""By name."""
