"""Small 32-bit guests as assembly text: what they do, their kernel's code behind the set-up, their program.

Room: `tests`. `machine_code.json` beside it is what GNU as makes of them (`test_small_guests.py` holds the two
together); `guest.py` says what lies where. Each case is run in the paging modes that it names.
"""

from tests.paravirt.i386.cases_levels import LEVELS
from tests.paravirt.i386.cases_processor import PROCESSOR
from tests.paravirt.i386.cases_virtual8086 import VIRTUAL_8086

CASES = {**LEVELS, **VIRTUAL_8086, **PROCESSOR}
"""Name -> kernel, program, paging modes."""
