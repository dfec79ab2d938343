"""Shadow tables of a 32-bit guest: those of x86, below which virtual-8086 mode begins a level further down.

Room: `paravirt/modes/i386`. The guest's tables have one of three forms (`emulator.isa.x86.paging32`) and may change it;
levels that it has none of let everything through. Knows nothing of segments.
"""

from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.paging import EXECUTE, READ, WRITE, GuestTables
from emulator.isa.x86 import walk as w
from emulator.isa.x86.paging32 import LegacyTables, NoTables, PaeTables
from emulator.memory import GuestMemory
from paravirt import abi, layout
from paravirt.mmu.shadow import MappingEngine
from paravirt.mmu.views import USER_VIEW
from paravirt.modes.i386.vcpu import I386VirtualCpu
from paravirt.modes.x86.shadow import X86Shadow

_ANYTHING = READ | WRITE | EXECUTE
_POINTERS = 3
"""The level at which processors in 32-bit mode begin, and the last that may have no table of the guest's."""
_SPAN = 1 << 21


class I386Shadow(X86Shadow):
    """The shadow page tables of one 32-bit virtual CPU."""

    window_place = abi.I386

    def __init__(
        self,
        engine: MappingEngine,
        memory: GuestMemory,
        vcpu: I386VirtualCpu,
        places: layout.Layout,
        *,
        name_changes: bool,
    ) -> None:
        self.three_levels = False
        """The processor is in 32-bit mode, and its root is below the top-level table."""
        view, context = memory.view, vcpu.context
        self._none = NoTables(vcpu.unpaged, context)
        self._legacy = LegacyTables(vcpu.legacy, view, context)
        self._pae = PaeTables(vcpu.pae, view, context)
        self._vcpu = vcpu
        super().__init__(engine, memory, context, places, name_changes=name_changes)

    def _guest_tables(self, memory: GuestMemory, context: w.GuestContext) -> GuestTables:
        return self._of_mode()

    def _of_mode(self) -> NoTables | LegacyTables | PaeTables:
        """The form of tables that CR0 and CR4 say."""
        walker = self._vcpu.walker
        if walker is self._vcpu.pae:
            return self._pae
        return self._legacy if walker is self._vcpu.legacy else self._none

    def speak_as_saved(self) -> None:
        """The guest's tables have the form that CR0 and CR4 say, and so have the shadow tables that are put back."""
        guest = self._of_mode()
        self.guest = guest
        self.pool.speak(guest)
        self._ratios = (0, *(level.ratio for level in guest.levels))

    def change_format(self) -> None:
        """CR0.PG, CR4.PAE or CR4.PSE were written."""
        self.change_guest(self._of_mode())

    def _enter(self, roots: tuple[int, ...]) -> None:
        if not self.three_levels:
            super()._enter(roots)
            return
        below = self.descend(roots[0], self._top, 0, self.role, self.form.tables[_ANYTHING])
        self._engine.set_root(self.pool.address_of(below))

    def _towards(self, table: int, level: int, address: int) -> int:
        if level >= _POINTERS:
            return self.descend(table, level, address, USER_VIEW, self.form.tables[_ANYTHING])
        return super()._towards(table, level, address)

    def maps(self, address: int, size: int) -> bool:
        """Whether the guest has mapped anything at `size` bytes from `address`, in whole spans of 2 MiB."""
        tables = self._of_mode()
        for start in range(address, address + size, _SPAN):
            if tables.vacant(start):
                continue
            for page in range(start, start + _SPAN, 4096):
                try:
                    tables.walk(page, False, False, False)
                except ArchitecturalException as fault:
                    if not (fault.error or 0) & w.ERROR_PRESENT:
                        continue
                return True
        return False
