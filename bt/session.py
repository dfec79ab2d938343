"""A session: an image, a machine and who drives it, put together for one run.

Room: `bt`. Everything that runs a guest (`retrap run`, `retrap verify`, the benchmarks, the tests)
makes a `Session`; here is the one place that knows which mode means which driver and translator.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt import para, xen
from bt.devices import Attached, Devices
from emulator.engine.engines import NAMES, open_engine
from emulator.errors import BadImage, EngineCrashed, UsageError
from emulator.machine import Limits, Machine, Outcome
from emulator.native import NativeCpu, native_for
from emulator.platforms import platform_of
from paravirt.mmu.techniques import ALL_TECHNIQUES
from paravirt.modes import hypervisor_for, must_trap, without_exit
from paravirt.para.modes import para_hypervisor_for
from paravirt.translator import Translator, Untouched

if TYPE_CHECKING:
    from bt.image import Image
    from bt.loadtime import LoadTimeTranslator
    from bt.plan import Plan
    from emulator.engine.protocol import Capabilities
    from paravirt.hypervisor import Hypervisor
    from paravirt.xen.hypervisor import XenHypervisor

MANIFEST = ".retrap.manifest"
"""The section by which a rewritten file is known (`bt.manifest`)."""

MODES = ("native", "none", "trap", "hypercall", "inline", "auto", para.MODE, xen.MODE)
"""Ways to run a guest: full privilege; deprivileged and not rewritten; the strategies of rewriting; para-virtual, by
the interface of this hypervisor, and by Xen's."""

MEMORY = 256 << 20
"""Default size of guest memory, bytes."""
MOST_MEMORY = 3 << 30


@dataclass(frozen=True, slots=True)
class Options:
    """How to run a guest."""

    mode: str = "inline"
    engine: str = "unicorn"
    """The CPU: "unicorn", "kvm", or "auto" for the fastest that can run the guest here."""
    memory: int = MEMORY
    """Bytes of guest memory."""
    initrd: bytes = b""
    command_line: str = ""
    delta: int = 0
    """Virtual relocation, bytes (KASLR)."""
    physical_delta: int = 0
    """Physical relocation, bytes."""
    limits: Limits = field(default_factory=Limits)
    timed: bool = False
    """Take the time of every exit."""
    cache: bool = True
    """Keep scans on disk."""
    technique: str = ""
    """How guest memory is virtualised: a name of `paravirt.mmu.techniques`; by default the instruction set's own."""
    devices: Devices = field(default_factory=Devices)
    """Disks and networks, of a Xen guest."""
    plan: Plan | None = None
    """A plan of the same mode to follow; a rewritten file brings its own."""
    repeats: bool = False
    """The run is recorded, or one that was recorded is done again."""

    def lacks(self, capabilities: Capabilities) -> str:
        """What an engine with such capabilities cannot do of this, in one clause; nothing where it can do all."""
        if self.mode == "native" and not capabilities.full_privilege:
            return "it cannot run a kernel at full privilege"
        return xen.lacks(capabilities) if self.mode == xen.MODE else ""

    def open_engine(self, isa: str, passed_over: list[str], byte_order: str) -> Any:
        """The CPU, as `emulator.engine.engines.open_engine` gives it."""
        return open_engine(isa, self.engine, self.lacks, passed_over, byte_order, repeats=self.repeats)

    def check(self) -> None:
        """Raise `UsageError` for options that make no sense."""
        if self.mode not in MODES:
            raise UsageError(f"there is no way to run a guest called {self.mode!r}; take one of {', '.join(MODES)}")
        if self.engine not in NAMES:
            raise UsageError(f"there is no engine called {self.engine!r}; take one of {', '.join(NAMES)}")
        if self.technique and self.technique not in ALL_TECHNIQUES:
            raise UsageError(
                f"there is no technique of memory virtualisation called {self.technique!r}; take one of "
                f"{', '.join(ALL_TECHNIQUES)}"
            )
        if self.technique and self.mode == "native":
            raise UsageError("at full privilege no memory is virtualised; leave the technique out")
        if self.mode == xen.MODE:
            xen.check(self)
        elif self.devices or self.devices.driver_domain:
            raise UsageError(f"disks and networks are Xen guests'; run it with --virt {xen.MODE}, or leave them out")
        if self.memory % 4096 or not 4 << 20 <= self.memory <= MOST_MEMORY:
            raise UsageError(
                f"{self.memory} bytes of guest memory: give whole pages, from 4 MiB to {MOST_MEMORY >> 20} MiB"
            )


def read_initrd(path: Path) -> bytes:
    """The initial file system's bytes. Raises `UsageError` where it cannot be read, `BadImage` where it is huge."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_MEMORY + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: cannot be read ({reason}); name a file that can") from None
    if len(data) > MOST_MEMORY:
        raise BadImage(f"{path}: is larger than any guest's memory; give a smaller initramfs")
    return data


def _isa(image: Image) -> str:
    """Name of an image's instruction set."""
    isa = image.isa
    return isa if isinstance(isa, str) else isa.name


class Session:
    """One run of one guest. `console` gets what the guest prints."""

    attached: Attached | None = None
    """Its disks and networks."""

    def __init__(self, image: Image, options: Options, console: Callable[[bytes], None]) -> None:
        options.check()
        self.plan = options.plan
        self.image_file = image.path
        """The file that the image was read from."""
        if image.section(MANIFEST) is not None:
            from bt.rewrite import original

            # The guest's memory holds the original; the file's plan says what executes in its place.
            image, manifest = original(image)
            if manifest is not None and manifest.plan.mode == options.mode:
                self.plan = manifest.plan
        para.check(image, options.mode)
        self.image = image
        self.options = options
        self.translator: LoadTimeTranslator | None = None
        self.passed_over: list[str] = []
        """Why faster engines were not taken, a sentence each, where the fastest was asked for."""
        of_xen = options.mode == xen.MODE
        platform = xen.platform() if of_xen else platform_of(_isa(image))
        self.machine = Machine(
            xen.machine_memory(options) if of_xen else options.memory,
            console,
            platform=platform,
            engine=lambda: options.open_engine(platform.isa, self.passed_over, image.byte_order),
            limits=options.limits,
        )
        try:
            self._build()
        except BaseException:
            self.machine.close()
            raise

    def _build(self) -> None:
        image, options = self.image, self.options
        self.driver: NativeCpu | Hypervisor | XenHypervisor
        if options.mode == xen.MODE:
            self.driver = xen.start(self.machine, image, options)
            if options.devices:
                self.attached = Attached(options.devices, self.driver, self.machine)
            return
        from bt.image import to_boot

        boot = to_boot(
            image,
            initrd=options.initrd,
            command_line=options.command_line,
            delta=options.delta,
            physical_delta=options.physical_delta,
        )
        state = self.machine.place(boot)
        if options.mode == "native":
            self.driver = native_for(self.machine)
        else:
            make = para_hypervisor_for if options.mode == para.MODE else hypervisor_for
            self.driver = make(self.machine, self._make_translator(), timed=options.timed, technique=options.technique)
            self._prepare_memory(self.driver)
        self.driver.enter(state)

    def _make_translator(self) -> Translator:
        options = self.options
        if options.mode == "none":
            return Untouched()
        from bt.loadtime import LoadTimeTranslator
        from bt.pagecache import PageCache

        cache = PageCache(isa=_isa(self.image)) if options.cache else None
        self.translator = LoadTimeTranslator(
            para.STRATEGY if options.mode == para.MODE else options.mode,
            self.image,
            options.delta,
            cache,
            self.plan,
            trapped=must_trap(self.machine.engine.capabilities),
            inlined=without_exit(self.machine.engine.capabilities),
        )
        return self.translator

    def _prepare_memory(self, hypervisor: Hypervisor) -> None:
        """Mark what may be code, and apply what is known of this kernel."""
        for text in self.image.text_ranges:
            first = self.physical(text.start + self.options.delta) - self.machine.memory.base
            hypervisor.shadow.mark_code(first >> 12, first + (text.end - text.start) - 1 >> 12)
        if self.translator is None:
            return
        for patch in self.translator.image_patches:
            at = self.physical(patch.address)
            found = self.machine.memory.read_bytes(at, len(patch.old))
            if found != patch.old:
                raise BadImage(
                    f"{self.image.path}: at {patch.address:#x} lies {found.hex()}, not {patch.old.hex()} as its own "
                    "tables say; run it with --virt trap"
                )
            self.machine.memory.write_bytes(at, patch.new)

    def physical(self, address: int) -> int:
        """Guest-physical address of a guest-virtual one of the loaded image."""
        options = self.options
        segment = self.image.segment_at(address - options.delta)
        if segment is None:
            raise BadImage(f"{self.image.path}: nothing of it is loaded at {address:#x}")
        return address - options.delta - segment.vaddr + segment.paddr + options.physical_delta

    def symbol(self, address: int) -> str:
        """Name of a guest-virtual address, by the image's symbols."""
        return self.image.symbols.name_at(address - self.options.delta) or f"{address:#x}"

    def run(self) -> Outcome:
        """Run the guest to its end.

        Raises `EngineCrashed`, with the guest's last state, where the engine's native code crashes: console, memory
        and counters of the session are then as they were left, and it can be closed.
        """
        # Nothing made while a guest runs refers to itself; looking for such things would cost a per cent.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._go()
        finally:
            if collecting:
                gc.enable()

    def _go(self) -> Outcome:
        try:
            return self.driver.run() if self.attached is None else self.attached.run()
        except EngineCrashed as crash:
            from bt.lost import last_state

            crash.last = last_state(self, crash)
            raise

    def close(self) -> None:
        """Release the engine, write the caches, and flush disks."""
        if self.attached is not None:
            self.attached.close()
        if self.translator is not None:
            self.translator.close()
        self.machine.close()
        gc.collect()  # a driver and its callbacks refer to each other, and hold the guest's memory
