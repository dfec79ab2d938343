"""Kernels that speak Xen's para-virtual interface: what their ELF notes say, as the domain builder wants it.

Room: `bt`. It reads an `Image`, and puts a machine for such guests together (`session`); `paravirt.xen.builder` puts
the kernel into memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.errors import BadImage, UsageError

if TYPE_CHECKING:
    from bt.image import Image
    from bt.session import Options
    from emulator.engine.protocol import Capabilities
    from emulator.machine import Machine
    from emulator.platforms import Platform
    from paravirt.xen.builder import XenKernel
    from paravirt.xen.hypervisor import XenHypervisor

MODE = "xen"

COMMAND_LINE = "console=hvc0 panic=-1 nr_cpus=1"
"""For Debian's kernels, in place of the one for a PC."""
_OWNER = "Xen"
_ADDRESSES = (2, 4, 8)


_OF_A_PC = ("console=", "acpi=", "noapic", "nolapic", "pci=", "tsc_early_khz=", "nosmp", "nr_cpus=")
"""Words of a kernel's command line that are about a PC; with nosmp Linux does not start as a Xen guest."""


def command_line(line: str) -> str:
    """A command line for a PC, as one for a Xen guest."""
    own = COMMAND_LINE.split()
    kept = [word for word in line.split() if not word.startswith(_OF_A_PC) and word not in own]
    return " ".join((*own, *kept))


def notes_of(image: Image) -> dict[int, bytes]:
    """The descriptions of Xen's notes, by number; the last of each counts. Raises `BadImage` for a damaged table."""
    return {note.type: note.description for note in image.notes if note.name == _OWNER}


def speaks_xen(image: Image) -> bool:
    """Whether an image says that it can be entered as a para-virtual guest."""
    from paravirt.xen.public import Note

    return image.isa.name == "x86-64" and bool({Note.ENTRY, Note.XEN_VERSION} & notes_of(image).keys())


def kernel_of(image: Image, initrd: bytes, command_line: str) -> XenKernel:
    """What the builder needs of an image. Raises `BadImage` for one that is no such guest."""
    from paravirt.xen.builder import Piece, XenKernel
    from paravirt.xen.public import Note

    if image.isa.name != "x86-64":
        raise BadImage(f"{image.path}: is a kernel for {image.isa.name}; Xen's para-virtual guests here are x86-64")
    notes = notes_of(image)

    def number(note: Note, default: int | None = None) -> int | None:
        description = notes.get(note)
        if description is None:
            return default
        if len(description) not in _ADDRESSES:
            raise BadImage(f"{image.path}: its Xen note {note.name} has {len(description)} bytes; build it again")
        return int.from_bytes(description, "little")

    if not speaks_xen(image):
        raise BadImage(f"{image.path}: has no notes by which Xen would load it; run it with another --virt")
    entry = number(Note.ENTRY, image.entry)
    assert entry is not None
    line = command_line.encode("utf-8", "surrogateescape")
    return XenKernel(
        path=image.path,
        pieces=tuple(Piece(s.paddr, s.data, s.memory_size, s.executable) for s in image.segments),
        entry=entry,
        virtual_base=number(Note.VIRT_BASE) or 0,
        physical_offset=number(Note.PADDR_OFFSET) or 0,
        hypercall_page=number(Note.HYPERCALL_PAGE),
        frame_list=number(Note.INIT_P2M),
        module_by_frame=bool(number(Note.MOD_START_PFN)),
        initrd=initrd,
        command_line=line,
    )


# -- a session ----------------------------------------------------------------------------------


def lacks(capabilities: Capabilities) -> str:
    """What an engine lacks for such guests, in one clause; nothing where it can run them."""
    if capabilities.reserved_root_slots:
        return "it needs entries of its own in the roots of page tables, and these are the guest's"
    return ""


def check(options: Options) -> None:
    """Raise `UsageError` for options that such guests cannot have."""
    if options.technique:
        raise UsageError("Xen guests have page tables of their own, and no technique to choose; leave it out")
    if options.delta or options.physical_delta:
        raise UsageError("Xen guests are built where their notes say; leave --kaslr and --physical out")
    options.devices.check()


def not_saved() -> str:
    """Why such guests can be neither saved nor recorded."""
    from paravirt.xen.hypervisor import XenHypervisor

    return XenHypervisor.not_saved


def platform() -> Platform:
    """The platform of such guests."""
    from paravirt.xen.board import XEN_PV

    return XEN_PV


def machine_memory(options: Options) -> int:
    """Bytes of machine memory for a guest, and for its driver domain where it has one."""
    from paravirt.xen.host import Host

    more = 0
    if options.devices.driver_domain:
        from bt.driver_domain import MEMORY

        more = Host.machine_size(MEMORY)
    return Host.machine_size(options.memory) + more


def start(machine: Machine, image: Image, options: Options) -> XenHypervisor:
    """A domain on a machine, built around an image and ready to run. Raises `BadImage`."""
    from paravirt.xen.host import Host
    from paravirt.xen.hypervisor import XenHypervisor

    kernel = kernel_of(image, options.initrd, options.command_line)
    host = Host(machine.memory) if options.devices.driver_domain else None  # which has the rest of memory
    driver = XenHypervisor(machine, options.memory >> 12, timed=options.timed, host=host)
    driver.load(kernel)
    return driver
