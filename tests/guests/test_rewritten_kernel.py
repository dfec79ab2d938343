"""A kernel that was rewritten in a file boots as it was rewritten: nothing that the file holds is decided again.

Debian's kernel tests its ciphers and hashes while it starts, against known results: a table that was taken for code and
patched would fail them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bt import guests
from bt.image import Image, from_bytes, load
from bt.image.elf_form import as_elf
from bt.pagescan import PAGE
from bt.planner import plan
from bt.rewrite import revert, rewrite
from bt.scan import scan
from bt.session import Options, Session
from bt.tactics.tactics import Tactic
from emulator.errors import Unavailable
from emulator.machine import EndKind, Limits, Outcome

SAMPLE = Path(__file__).parents[2] / "samples" / "x86_64" / "sample.elf"


class Watch:
    """Keeps the code of every page that the translator gives."""

    def __init__(self, session: Session) -> None:
        assert session.translator is not None
        self.translator = session.translator
        self.pages: dict[int, list[bytes]] = {}
        self.fixups: set[int] = set()
        original = session.translator.translate

        def translate(address: int, code: bytes, before: bytes, after: bytes, entry: int) -> object:
            result = original(address, code, before, after, entry)
            self.pages.setdefault(address, []).append(result.code)
            self.fixups |= {fixup.address for fixup in result.fixups}
            return result

        session.translator.translate = translate  # type: ignore[method-assign, assignment]


def boot(image: Image, mode: str, command_line: str, initrd: bytes = b"") -> tuple[Outcome, str, Watch]:
    console = bytearray()
    limits = Limits(host_seconds=200)
    options = Options(mode=mode, initrd=initrd, command_line=command_line, cache=False, limits=limits)
    session = Session(image, options, console.extend)
    watch = Watch(session)
    try:
        return session.run(), console.decode(errors="replace"), watch
    finally:
        session.close()


@pytest.mark.parametrize("mode", ["hypercall", "auto"])
@pytest.mark.parametrize("group", ["flags", "tables", "segments", "exceptions"])
def test_fixups_that_call_the_hypervisor_do_what_the_sample_expects(mode: str, group: str) -> None:
    original = load(SAMPLE)
    data = rewrite(original, plan(original, scan(original), mode))
    outcome, console, watch = boot(from_bytes(data, "out"), mode, f"only={group}")
    assert outcome.status == 0, console
    assert watch.translator.followed > 5


@pytest.mark.kernel
def test_debians_kernel_boots_as_it_was_rewritten_and_passes_its_own_tests() -> None:
    try:
        guest = guests.find("debian-amd64")
    except Unavailable as error:
        pytest.skip(str(error))
    original = load(guest.kernel)
    planned = plan(original, scan(original), "auto")
    data = rewrite(original, planned)
    out = from_bytes(data, "out")
    outcome, console, watch = boot(out, "auto", guest.command_line, guest.initrd.read_bytes())
    assert guest.marker in console
    assert outcome.kind in (EndKind.POWER_OFF, EndKind.HALTED)
    tests = [line for line in console.splitlines() if "self-test" in line]
    assert tests
    assert all("passed" in line for line in tests), tests
    assert not [line for line in console.splitlines() if "alg: " in line and "ailed" in line]
    text = out.segments[0]
    kept = sum(
        any(code == bytes(text.data[page - text.vaddr : page - text.vaddr + PAGE]) for code in codes)
        for page, codes in watch.pages.items()
        if text.vaddr <= page < text.vaddr + len(text.data) - PAGE
    )
    # Nearly every page of this kernel is patched by itself: its returns, its locks, its alternatives.
    assert watch.translator.followed > 150
    assert kept > 100, "pages execute byte for byte as the file has them"
    made = watch.fixups - {fixup.address for fixup in planned.fixups}
    assert len(made) < len(planned.fixups) / 4, "what the kernel changed itself mostly keeps the file's fixups"
    assert sum(site.tactic is Tactic.HYPERCALL for site in planned.sites) > 900


OTHERS = ("debian-i386-pae", "debian-arm64", "debian-armhf", "debian-mipsel")


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_kernels_of_other_instruction_sets_boot_as_they_were_rewritten(name: str) -> None:
    try:
        guest = guests.find(name)
    except Unavailable as error:
        pytest.skip(str(error))
    loaded = load(guest.kernel)
    kernel = as_elf(loaded)
    data = rewrite(kernel, plan(kernel, scan(kernel), "auto"))
    assert revert(data, appended=False) == bytes(kernel.elf)
    assert revert(data) == bytes(loaded.elf), "what the container held, unpacked"
    outcome, console, watch = boot(from_bytes(data, "out"), "auto", guest.command_line, guest.initrd.read_bytes())
    assert guest.marker in console
    assert outcome.kind in (EndKind.POWER_OFF, EndKind.HALTED)
    assert watch.translator.followed > 50
