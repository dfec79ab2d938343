"""System calls without an exit: when the engine may lead user code to the kernel and back, and what is left to do then.

Room: `paravirt/modes/x86`, for engines that say `crosses`. The hypervisor opens the way whenever it enters user code in
an ordinary state, and closes it with whatever makes a difference. The guest itself does the harmless part: code in the
last page of the fixups, at which the kernel is entered, and the fixup of SYSRET. At the next exit the virtual CPU is
made to be where the guest is. A divide error of user code comes the same way as a SYSCALL, and is told apart there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from emulator.engine.crossing import Crossing
from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from emulator.isa.x86.decode import instruction_at
from emulator.isa.x86.descriptors import FLAT_DATA, FLAT_LIMIT, KERNEL_CODE, USER_CODE, USER_DATA
from paravirt import abi
from paravirt.modes.x86 import kernel_traps, user_faults, user_returns
from paravirt.modes.x86.shadow import BLOCKS, BLOCKS_SIZE
from paravirt.translator import Hypercall

if TYPE_CHECKING:
    from emulator.engine.x86 import CrossingEngine
    from paravirt.modes.x86.chain import Chain, Step
    from paravirt.modes.x86.shadow import X86Shadow
    from paravirt.modes.x86.vcpu import X86VirtualCpu

_SWAPGS: Final = bytes.fromhex("0f01f8")
_SYSRETQ: Final = bytes.fromhex("480f07")
_LEAVE: Final = 1152
"""Offset in the page of code of the division by zero by which the kernel is left, and of its operand."""
_ZERO: Final = _LEAVE + 8
_NO_CALL: Final = (1 << 64) - 1
"""Instead of a page fault's error code: user code has divided by zero."""
_BACK: Final = 1184
_INVALIDATE_AT: Final = _BACK + 1360
_TRAPPED: Final = 4096 - kernel_traps.MOST_BYTES
"""Offsets of the code for IRETQ, for INVLPG, and for traps of the kernel's."""
_MOST_MET: Final = 64
_LOWEST_SELECTOR, _SELECTORS_END = 16, 0xFF00
_MASKED: Final = r.FLAGS_STATUS | r.FLAG_TF | r.FLAG_IF | r.FLAG_DF | r.FLAG_NT | r.FLAG_AC | r.FLAG_ID
"""Flags that SYSCALL must clear: the kernel begins with none of them."""
_SAVED, _TARGET, _TO, _THREAD, _COUNT = (
    offset >> 3
    for offset in (
        *(abi.CROSSING_SAVED, abi.CROSSING_TARGET, abi.CROSSING_LEAVE),
        *(abi.CROSSING_THREAD, abi.CROSSINGS),
    )
)
_ERROR, _RIP, _FLAGS, _RSP, _ADDRESS, _FAULTS, _HANDLER = ((abi.CROSSING_FAULT >> 3) + word for word in range(7))
_RETURN_THREAD, _RETURN_CODE, _RETURN_SLOW = (
    offset >> 3 for offset in (abi.RETURN_THREAD, abi.RETURN_CODE, abi.RETURN_SLOW)
)
_SEEN, _RETURNS, _ROOT, _LOGGED = (
    offset >> 3 for offset in (user_returns.SEEN, user_returns.RETURNS, user_returns.ROOT, user_returns.LOGGED)
)
_ROOT_OF, _INVALIDATE, _BEHIND, _KERNEL_ROOT, _LISTED, _WAITING = (
    offset >> 3
    for offset in (
        *(user_returns.ROOT_OF, user_returns.INVALIDATE, user_returns.BEHIND, user_returns.KERNEL_ROOT),
        *(user_returns.LISTED, user_returns.WAITING),
    )
)
_SEGMENTS, _SWAPS = kernel_traps.SEGMENTS >> 3, kernel_traps.SWAPS >> 3
_LIST: Final = abi.INVALIDATE_LIST >> 3
_LOG: Final = abi.RETURN_LOG >> 3
_STACK_SELECTOR: Final = (abi.SELECTORS >> 3) + r.SS
_USERS: Final = r.FLAGS_STATUS | r.FLAG_DF | r.FLAG_TF | r.FLAG_NT | r.FLAG_AC | r.FLAG_RF | r.FLAG_ID
_SCRATCH: Final = abi.SCRATCH + 8 * (abi.SCRATCH_WORDS - 1)


class Crossings:
    """The way between the user code of one guest and its kernel."""

    def __init__(
        self,
        engine: CrossingEngine,
        vcpu: X86VirtualCpu,
        shadow: X86Shadow,
        window: memoryview,
        hypercalls: dict[int, Hypercall],
        crossed: Callable[[bool], None],
    ) -> None:
        """`window` is the memory of the fixups; `crossed` is `CrossingEngine.lead_crossing`'s."""
        self._engine, self._vcpu, self._shadow, self._crossed = engine, vcpu, shadow, crossed
        self._shared = vcpu.shared
        first = abi.CROSSING_CODE - abi.FIXUP_BASE
        self._code = window[first : first + 4096]
        self._hypercalls, self._looked = hypercalls, 0
        self.leave = leave = abi.CROSSING_CODE + _LEAVE
        """Where the kernel divides by zero to go back to user code."""
        hypercalls[leave] = Hypercall(leave, Operation.RETURN_FROM_SYSTEM_CALL, leave, _SYSRETQ)
        self._known: tuple[int, int] | None = None
        """LSTAR and STAR of the way that the engine was told."""
        self._balance = 0
        self.slow = -1
        """Where code for page faults of user code leaves one to the hypervisor; -1 where there is no such code."""
        self._none = -1
        """Where that for system calls leaves what is none."""
        self._fault_entry = self._user_data = 0
        """Where that code begins; the selector that user code has in SS."""
        self._memory = 0
        """Where the guest's memory is shown to that code."""
        self.invalidations = 0
        """INVLPGs done without an exit."""
        self._back = -1
        """Where the engine does IRETQ; -1 where it does not."""
        self.trapped = -1
        """Where the code for traps of the kernel's leaves one to the hypervisor."""
        self._places: dict[int, list[kernel_traps.Step]] = {}
        """Traps that it knows, by address."""
        self._met: dict[int, int] = {}
        """How often others have exited."""
        self.close()

    def learn(self, step: Step | None) -> None:
        """The guest has made a system call, and stands where its kernel is entered; `step` is `Chain.after` there. The
        way is not used before, and not where SYSRET has no fixup."""
        vcpu = self._vcpu
        key = (vcpu.lstar, vcpu.star)
        if key == self._known or len(self._hypercalls) == self._looked:
            return
        if not any(
            call.operation is Operation.RETURN_FROM_SYSTEM_CALL and address != self.leave
            for address, call in self._hypercalls.items()
        ):
            self._looked = len(self._hypercalls)
            return
        self._known = key
        self._lead(step)

    def open(self, thread: int) -> None:
        """User code was entered with this FS base."""
        vcpu = self._vcpu
        masked = vcpu.fmask & _MASKED == _MASKED and not vcpu.iopl and vcpu.efer & r.EFER_SCE
        # A kernel that has yet to go back does so by SYSRET, which loads the selector that is expected.
        other_stack = vcpu.level == 3 and vcpu.registers.selector(r.SS) != self._user_data
        if self.slow >= 0 and (not vcpu.efer & r.EFER_NXE or other_stack):
            masked = 0
        roots = self._shadow.both_roots() if masked and self._known == (vcpu.lstar, vcpu.star) else None
        if roots is None:
            self.close()
            return
        self._shared[_THREAD] = thread
        if self._back >= 0:
            self._shared[_RETURN_THREAD] = thread
            first = self._shadow.pool.physical
            self._shared[_KERNEL_ROOT], self._shared[_ROOT] = roots[0] - first, roots[1] - first
            self._shared[_ROOT_OF] = vcpu.cr3
        self._engine.open_crossing(*roots)

    def leads_back(self, thread: int) -> bool:
        """Whether a thread, by FS base, that came to the kernel without an exit may be gone back to as it was left."""
        return self._known is not None and self._shared[_THREAD] == thread

    def hold(self) -> None:
        """User code is entered next by the hypervisor."""
        self._shared[_THREAD] = self._shared[_RETURN_THREAD] = abi.NO_THREAD

    def close(self) -> None:
        """It is entered and left by the hypervisor."""
        self._shared[_THREAD] = self._shared[_RETURN_THREAD] = abi.NO_THREAD
        self._engine.close_crossing()

    def code_changed(self, page: int) -> bool:
        """Code changed at this page; whether the way has to be learnt anew."""
        pages = {page >> 12, (page >> 12) - 1}  # an instruction may reach into it
        if any(step.at >> 12 in pages for steps in self._places.values() for step in steps):
            self._forget_traps()
        if self._known is None or page >> 12 not in (self._known[0] >> 12, self._shared[_TARGET] >> 12):
            return False
        self.forget()
        return True

    def forget(self) -> None:
        """All is another: look where the kernel is entered when that is next asked for."""
        if self._known is not None:
            self._known, self._looked = None, 0
            self.close()
            self._forget_traps()
            self._shared[_INVALIDATE] = 0

    def tables_changed(self) -> None:
        """The guest loaded a descriptor table or its task register: its handlers may be others."""
        if self.slow >= 0:
            self.forget()

    @property
    def leads(self) -> bool:
        """Whether the engine was told the way, which is so in code alone whose every sensitive instruction is rewritten
        or traps."""
        return self._known is not None

    def switched(self, user: bool) -> None:
        """The hypervisor entered user code, or it left user code by an exit."""
        self._balance += -1 if user else 1

    def begin(self, user: bool) -> None:
        """Count from here on."""
        self._balance = -1 if user else 0
        if self._known is None:
            self._shared[_THREAD] = self._shared[_RETURN_THREAD] = abi.NO_THREAD
            self._shared[_INVALIDATE] = 0
        for word in (_COUNT, _FAULTS, _SEEN, _RETURNS, _LOGGED, _LISTED, _WAITING, _SEGMENTS, _SWAPS):
            self._shared[word] = 0

    def segments(self, user: bool) -> None:
        """Have the virtual CPU loaded CS and SS as SYSCALL or SYSRET does."""
        vcpu = self._vcpu
        if user:
            selector = vcpu.star >> 48 & 0xFFFF
            vcpu.level = 3
            vcpu.set_segment(r.CS, selector + 16 & 0xFFFF | 3, 0, FLAT_LIMIT, USER_CODE)
            vcpu.set_segment(r.SS, selector + 8 & 0xFFFF | 3, 0, FLAT_LIMIT, USER_DATA)
        else:
            selector = vcpu.star >> 32 & 0xFFFC
            by_fault = self.slow >= 0 and vcpu.copies_selectors and not self._shared[_STACK_SELECTOR]
            vcpu.level = 0
            vcpu.set_segment(r.CS, selector, 0, FLAT_LIMIT, KERNEL_CODE)
            vcpu.set_segment(r.SS, 0 if by_fault else selector + 8 & 0xFFFF, 0, FLAT_LIMIT, FLAT_DATA)

    @property
    def counts(self) -> tuple[int, int]:
        """How often the kernel was entered, and left, without an exit: leaves follow from the side the guest is on."""
        into = int(self._shared[_COUNT])
        return into, max(0, into + self.faults + self._balance + (self._vcpu.level == 3) - self.returns)

    @property
    def returns(self) -> int:
        """How often IRETQ led to user code without an exit."""
        return int(self._shared[_RETURNS])

    @property
    def faults(self) -> int:
        """How many page faults of user code reached its kernel without an exit."""
        return int(self._shared[_FAULTS])

    @property
    def used(self) -> int:
        """How often anything was done without an exit."""
        shared = self._shared
        return int(shared[_COUNT] + shared[_FAULTS] + shared[_RETURNS])

    def new_fault(self) -> tuple[int, int, int, bool, bool] | None:
        """The last of them, if it was not looked at: RIP, level, address, whether it was a store, or a fetch."""
        shared = self._shared
        if shared[_FAULTS] == shared[_SEEN]:
            return None
        shared[_SEEN] = shared[_FAULTS]
        error = shared[_ERROR]
        return shared[_RIP], 3, shared[_ADDRESS], error & 2 != 0, error & 16 != 0

    @property
    def goes_back(self) -> bool:
        """Whether IRETQ may lead to user code without an exit."""
        return self._back >= 0

    @property
    def noted(self) -> bool:
        """Whether entries were made without an exit since `drain`."""
        return self._shared[_LOGGED] != 0 or self._shared[_LISTED] != 0

    def drain(self) -> None:
        """Take over what was noted of the entries that were made without an exit."""
        shared = self._shared
        count = min(shared[_LOGGED], user_returns.MOST)
        shared[_LOGGED] = 0
        for at in range(_LOG, _LOG + 2 * count, 2):
            place, guest = shared[at], shared[at + 1]
            if place & 1:
                self._shadow.made_together(place >> 3, guest)
            else:
                self._shadow.made_elsewhere(place >> 3, guest)
        count = min(shared[_LISTED], user_returns.MOST)
        if count:
            shared[_LISTED] = shared[_WAITING] = 0
            self.invalidations += count
            self._vcpu.forget_translations()
            for at in range(_LIST, _LIST + count):
                self._shadow.invalidate(shared[at])

    def undo_return(self) -> None:
        """The engine has not done IRETQ at its HLT: let the guest come to its own, as it was."""
        shared = self._shared
        shared[_RETURNS] -= shared[_RETURNS] > 0
        shared[_SEEN] = 0  # the fault was not dealt with
        self.abandon(self._vcpu.rip)

    def abandon(self, pc: int) -> bool:
        """Whether the guest is in the code for IRETQ or INVLPG, also where it was restored there, and now is where the
        hypervisor does that. What the code needs may not be there, or its guest's stack may not."""
        at, vcpu, shared = pc - abi.CROSSING_CODE, self._vcpu, self._shared
        if not _BACK <= at < _TRAPPED:
            return False
        back = at < _INVALIDATE_AT
        kept = user_returns.KEPT if back else user_returns.KEPT_OF_INVALIDATION
        if at - (_BACK if back else _INVALIDATE_AT) >= (
            user_returns.STORES if back else user_returns.STORES_OF_INVALIDATION
        ):
            for number, word in kept:
                vcpu.gpr[number] = shared[word >> 3]
            if not back:
                kept_flags = shared[user_returns.KEPT_FLAGS >> 3] & _USERS
                vcpu.registers.rflags = kept_flags | vcpu.registers.rflags & ~_USERS
        elif not back:
            vcpu.gpr[r.RCX] = shared[(abi.SCRATCH >> 3) + 1]
        vcpu.rip = shared[_RETURN_SLOW if back else _BEHIND]
        return True

    def trap(self, rip: int, chain: Chain) -> None:
        """The kernel's instruction at `rip` has trapped and was done: let it be done without an exit, if that is often,
        and with it what stands behind."""
        if self._back < 0 or rip in self._places or len(self._places) == kernel_traps.MOST:
            return
        if len(self._met) > _MOST_MET:
            self._met.clear()
        self._met[rip] = times = self._met.get(rip, 0) + 1
        if times != kernel_traps.OFTEN:
            return
        steps: list[kernel_traps.Step] = []
        while len(steps) < kernel_traps.MOST_STEPS:
            instruction = instruction_at(self._vcpu.fetch(rip), rip)
            step = kernel_traps.step_of(instruction) if instruction is not None else None
            if step is None:
                break
            steps.append(step)
            following = chain.after(step.behind)
            if following is None:
                break
            rip = following[0]
        if steps:
            self._places[steps[0].at] = steps
            self._lead_traps()

    def _forget_traps(self) -> None:
        """Those that were learnt exit."""
        self._met.clear()
        if self._places:
            self._places.clear()
            self._lead_traps()

    def _lead_traps(self) -> None:
        """Write the code for traps of the kernel's, and tell the engine of those that it is for."""
        places = list(self._places.values())
        code, halt = kernel_traps.trapped_code(places, self._engine.call_frame[0])
        while len(code) > kernel_traps.MOST_BYTES:
            del self._places[places.pop()[0].at]
            code, halt = kernel_traps.trapped_code(places, self._engine.call_frame[0])
        self._code[_TRAPPED : _TRAPPED + len(code)] = code
        self.trapped = abi.CROSSING_CODE + _TRAPPED + halt
        self._engine.lead_traps([steps[0].at for steps in places])

    @property
    def traps(self) -> tuple[int, int]:
        """How many segments were loaded, and bases exchanged, without an exit."""
        return int(self._shared[_SEGMENTS]), int(self._shared[_SWAPS])

    def untrap(self) -> None:
        """The code for traps of the kernel's has left one to the hypervisor: be where it was."""
        vcpu, shared = self._vcpu, self._shared
        for number, word in kernel_traps.KEPT:
            vcpu.gpr[number] = shared[word >> 3]
        vcpu.rip = shared[kernel_traps.RIP >> 3]
        flags = shared[kernel_traps.KEPT_FLAGS >> 3] & _USERS
        vcpu.registers.rflags = flags | vcpu.registers.rflags & ~_USERS

    def within_fault(self, pc: int) -> bool:
        """Whether the guest is in the code for page faults."""
        return self.slow >= 0 and self._fault_entry <= pc <= self.slow

    @staticmethod
    def leaves_fault(pc: int) -> bool:
        """Whether a HLT at `pc` is the one at `slow`, or that for what is no call, also where the guest was restored
        within that code: there is no other before the way out."""
        return 0 <= pc - abi.CROSSING_CODE < _LEAVE

    def stays(self, pc: int) -> bool:
        """Whether a guest that comes to its hypervisor from `pc` never got from user code to its kernel."""
        return pc in (self.slow, self._none) and pc >= 0

    def refault(self) -> tuple[int, int] | None:
        """Have the virtual CPU be where user code was at the fault that was begun last, in the user view, but for the
        view itself; error code and address. None for a divide error."""
        vcpu, shared = self._vcpu, self._shared
        page = shared[_ERROR] != _NO_CALL
        if vcpu.level != 3:
            self.segments(True)
        if page and not 0 <= vcpu.rip - self._fault_entry < user_faults.STORES:
            for number, word in user_faults.KEPT:  # the code uses them, and puts them back at its end alone
                vcpu.gpr[number] = shared[word >> 3]
        vcpu.rip = shared[_RIP]
        vcpu.gpr[r.RSP] = shared[_RSP]
        vcpu.registers.rflags = shared[_FLAGS] & _USERS | r.FLAG_IF | r.FLAG_FIXED
        return (int(shared[_ERROR]), int(shared[_ADDRESS])) if page else None

    def _lead(self, step: Step | None) -> None:
        """Write the code at which the kernel is entered, and tell the engine."""
        vcpu, shared = self._vcpu, self._shared
        swaps = step is not None and vcpu.fetch(step[0], len(_SWAPGS)) == _SWAPGS
        shared[_TARGET] = step[0] + len(_SWAPGS) if step is not None and swaps else vcpu.lstar
        shared[_TO] = self.leave
        code = self._entry(swaps)
        self._code[: len(code)] = code
        self._code[_LEAVE:_ZERO] = (
            bytes.fromhex("f73425") + _low(abi.CROSSING_CODE + _ZERO) + b"\xf4"
        )  # div dword [...]
        self._code[_ZERO : _ZERO + 8] = bytes(8)
        begin, saved = abi.CROSSING_CODE, abi.SHARED_PAGE + abi.CROSSING_SAVED
        self._none = begin + len(code) - 1
        user_code = (vcpu.star >> 48 & 0xFFFF) + 16 & 0xFFFF | 3
        fault, end = self._lead_faults(len(code) + 15 & ~15, user_code)
        way = Crossing(begin, begin + (end or len(code)), saved, self.leave, user_code, fault)
        self._engine.lead_crossing(self._lead_returns(way), self._crossed)

    def _lead_faults(self, offset: int, user_code: int) -> tuple[int, int]:
        """Write the code for page faults of user code; where it begins, and the offset of its end. Zeros for none."""
        vcpu, frames, self.slow = self._vcpu, self._shadow.frames, -1
        handler = user_faults.handler_of(vcpu)
        shown = self._engine.show_memory(frames.end) if not frames.base else None
        if handler is None or shown is None:
            return 0, 0
        self._memory = shown
        places = shown, self._engine.call_frame[0]
        code, halt = user_faults.fault_code(handler, places, frames.end, user_code - 8, vcpu.copies_selectors)
        end = offset + len(code)
        if end > _LEAVE:
            raise ValueError(f"{len(code)} bytes for page faults do not fit before the way out")
        self._code[offset:end] = code
        self._shared[_HANDLER] = handler.target
        self._fault_entry, self._user_data = abi.CROSSING_CODE + offset, user_code - 8
        self.slow = self._fault_entry + halt
        return self._fault_entry, end

    def _lead_returns(self, way: Crossing) -> Crossing:
        """Write the code for IRETQ, where page faults are delivered without an exit, and tell the engine of it."""
        vcpu, shadow, self._back = self._vcpu, self._shadow, -1
        known = way.fault and vcpu.copies_selectors and _LOWEST_SELECTOR <= way.user_code < _SELECTORS_END
        regions = shadow.regions() if known else None
        shown = self._engine.show_tables(regions) if regions is not None else None
        if regions is None or shown is None:
            return way
        (tables, size), frames = regions[0], shadow.frames
        shadow.tell_marks(shown[1])
        at_tables, sources, kinds = shown[0]
        guests, blocks = sources + BLOCKS, sources + BLOCKS + BLOCKS_SIZE
        there = user_returns.Shown(self._memory, frames.end, at_tables, tables, size, sources, guests, kinds)
        code, halt, together = user_returns.return_code(there, way.user_code)
        invalidating, clear = user_returns.invalidating_code(there)
        for at, part, end in ((_BACK, code, _INVALIDATE_AT), (_INVALIDATE_AT, invalidating, _TRAPPED)):
            if at + len(part) > end:
                raise ValueError(f"{len(part)} bytes for IRETQ or INVLPG do not fit into the page")
            self._code[at : at + len(part)] = part
        self._shared[_INVALIDATE] = abi.CROSSING_CODE + _INVALIDATE_AT
        self._shared[_RETURN_CODE] = abi.CROSSING_CODE + _BACK
        self._back = abi.CROSSING_CODE + _BACK + halt
        for place in (halt, together):
            back = abi.CROSSING_CODE + _BACK + place
            self._hypercalls[back] = Hypercall(back, Operation.RETURN_FROM_EXCEPTION, back, b"")
        self._lead_traps()
        saved = tuple(abi.SHARED_PAGE + word for word in user_returns.SAVED)
        return replace(
            way,
            enter_end=abi.CROSSING_CODE + len(self._code),
            back=self._back,
            back_together=self._back - halt + together,
            clear=abi.CROSSING_CODE + _INVALIDATE_AT + clear,
            trapped=abi.CROSSING_CODE + _TRAPPED,
            back_saved=saved,
            tables=tables,
            tables_size=size,
            blocks=blocks,
        )

    def _entry(self, swaps: bool) -> bytes:
        """What is left to do of SYSCALL, and the SWAPGS behind it; and at its end, a HLT for what was none."""
        vcpu = self._vcpu
        selector = vcpu.star >> 32 & 0xFFFC
        frame, site = self._engine.call_frame
        parts = [_store(abi.INTERRUPT_DELTA, abi.INTERRUPTS_DISABLED), _text("48ff0425", abi.CROSSINGS)]  # inc [...]
        if vcpu.copies_selectors:
            parts += _store(abi.SELECTORS + 8 * r.CS, selector), _store(abi.SELECTORS + 8 * r.SS, selector + 8 & 0xFFFF)
        if swaps:
            parts += (
                bytes.fromhex("f3480faec8"),  # rdgsbase rax
                _text("48870425", abi.KERNEL_GS_BASE),  # xchg [...], rax
                bytes.fromhex("f3480faed8"),  # wrgsbase rax
            )
        parts += _frame(frame + 32), bytes.fromhex("4889c4")  # mov rax, [...]; mov rsp, rax
        parts += _text("488b0c25", abi.CROSSING_SAVED), _text("488b0425", _SCRATCH)  # mov rcx, [...]; mov rax, [...]
        parts.append(_text("ff2425", abi.CROSSING_TARGET))  # jmp [...]
        call = b"".join(parts)
        other = _frame(frame + 8) + _text("48890425", abi.CROSSING_FAULT + 8)  # mov [...], rax
        other += _frame(frame + 24) + _text("48890425", abi.CROSSING_FAULT + 16)
        other += _frame(frame + 32) + _text("48890425", abi.CROSSING_FAULT + 24)
        other += _store(abi.CROSSING_FAULT, -1)
        other += _text("488b0c25", abi.CROSSING_SAVED) + _text("488b0425", _SCRATCH) + b"\xf4"
        begin = _text("48890425", _SCRATCH) + bytes.fromhex("4989e3")  # mov [scratch], rax; mov r11, rsp
        begin += _frame(frame + 8)  # mov rax, [...]
        begin += b"\x48\xb9" + struct.pack("<Q", site) + bytes.fromhex("4839c8")  # mov rcx, ...; cmp rax, rcx
        return begin + b"\x0f\x85" + struct.pack("<I", len(call)) + call + other  # jne other


def _frame(address: int) -> bytes:
    """Load RAX from an address."""
    return b"\x48\xa1" + struct.pack("<Q", address)


def _low(address: int) -> bytes:
    """The address of a word of the hypervisor's window as an operand."""
    return struct.pack("<I", address & 0xFFFF_FFFF)


def _text(code: str, offset: int, *behind: bytes) -> bytes:
    """An instruction with a word of the shared page as its operand."""
    return bytes.fromhex(code) + _low(abi.SHARED_PAGE + offset) + b"".join(behind)


def _store(offset: int, value: int) -> bytes:
    """Store a sign-extended constant."""
    return _text("48c70425", offset, struct.pack("<i", value))
