"""Snapshots of sessions: what `paravirt.services.snapshot` keeps, and besides it the guest's image and the rewriter.

Room: `bt`. A snapshot names its image by path and hash and does not hold it. A resumed session reads the image, and
makes its translator, when the first page comes that was not translated before: to go on at once, neither is needed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, Final, cast

from bt import para
from bt.session import MANIFEST, Options, Session
from emulator.errors import BadSnapshot, UsageError, brief
from emulator.machine import Limits, Machine, Outcome
from emulator.memory import GuestMemory
from emulator.platforms import platform_of
from paravirt.modes import hypervisor_for, must_trap, without_exit
from paravirt.para.modes import para_hypervisor_for
from paravirt.services.columns import Columns
from paravirt.services.snapshot import Snapshot, Written, save
from paravirt.translator import Translation, Translator, Untouched

if TYPE_CHECKING:
    from bt.image import Image
    from bt.loadtime import LoadTimeTranslator
    from paravirt.hypervisor import Hypervisor

_IMPOSSIBLE: Final = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, struct.error)
"""What handlers raise of a saved machine whose parts do not fit together."""
CONSOLE_KEPT: Final = 1 << 16
"""Bytes of what a guest has printed that its snapshot keeps, the last ones."""
_KEPT_OPTIONS: Final = ("mode", "engine", "memory", "command_line", "delta", "physical_delta", "technique")
_SAVED_MODES: Final = ("none", "trap", "hypercall", "inline", "auto", para.MODE)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises `BadSnapshot` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadSnapshot(f"{path}: the image cannot be read ({error.strerror}); name it with --image") from None


def save_session(session: Session, path: Path, console: bytes = b"", parent: Snapshot | None = None) -> Written:
    """Write a session whose guest is between two blocks; `console` is what it has printed.

    Raises `UsageError` for one that cannot be saved, `Unwritable` where the file cannot be written.
    """
    options = session.options
    if session.driver.not_saved:
        raise UsageError(session.driver.not_saved)
    if options.mode not in _SAVED_MODES:
        raise UsageError(f"a guest that runs with --virt {options.mode} cannot be saved; take another way to run it")
    if isinstance(session, ResumedSession):
        image, digest = session.image_path, session.image_digest
    else:
        image = Path(session.image_file)
        digest = digest_of(image)
    wide_vectors = session.machine.engine.capabilities.wide_vectors
    description = {
        "image": str(image.resolve()),
        "sha256": digest,
        "options": {name: getattr(options, name) for name in _KEPT_OPTIONS},
        "console": console[-CONSOLE_KEPT:].hex(),
        "printed": len(console),
        "asleep": session.driver.asleep,
        "wide_vectors": wide_vectors or (isinstance(session, ResumedSession) and session.had_wide_vectors),
    }
    columns = Columns()
    translator = session.later if isinstance(session, ResumedSession) else session.translator
    if translator is not None:
        put_translator(columns, translator)
    return save(path, cast("Hypervisor", session.driver), description, columns.contents, parent)


# -- the rewriter -------------------------------------------------------------------------------


def put_translator(columns: Columns, translator: LoadTimeTranslator | LaterTranslator) -> None:
    """Write what a translator remembers: where its fixups lie, and pages as it saw them last."""
    if isinstance(translator, LaterTranslator):
        if translator.made is None:
            columns.contents.update(translator.columns.contents)
            return
        translator = translator.made
    from bt.pagecache import pack_scan

    fixups, last = translator._fixups, translator._last
    columns.put("rewriter.numbers", (translator._arena.next, translator._unknown), signed=False)
    columns.put("rewriter.site", (address for address, _ in fixups), signed=False)
    columns.put("rewriter.place", (0 if place is None else place for place in fixups.values()), signed=False)
    columns.put_pieces("rewriter.window", [window for _, window in fixups])
    columns.put("rewriter.page", last, signed=False)
    columns.put_pieces("rewriter.seen", [seen.whole for seen in last.values()])
    columns.put_pieces("rewriter.scan", [seen._packed or pack_scan(seen.scan) for seen in last.values()])


def take_translator(columns: Columns, translator: LoadTimeTranslator, *, same: bool) -> None:
    """Let a translator that is new remember; of another engine's only which places are taken. Raises `ValueError`."""
    from bt.loadtime import _Seen

    following, unknown = columns.take("rewriter.numbers", signed=False, length=2)
    region = translator._arena.region
    if not region.start <= following <= region.end + 4096:
        raise ValueError(f"the next fixup would lie at {following:#x}, outside their region")
    translator._arena.next = max(following, translator._arena.next)
    translator._waiting = ()
    if not same:
        return
    translator._unknown = unknown
    sites = columns.take("rewriter.site", signed=False)
    places = columns.take("rewriter.place", signed=False, length=len(sites))
    windows = columns.take_pieces("rewriter.window", len(sites))
    translator._fixups = {
        (site, window): place or None for site, window, place in zip(sites, windows, places, strict=True)
    }
    pages = columns.take("rewriter.page", signed=False)
    seen, scans = (columns.take_pieces(f"rewriter.{name}", len(pages)) for name in ("seen", "scan"))
    translator._last = {
        page: _Seen(whole, None, packed) for page, whole, packed in zip(pages, seen, scans, strict=True)
    }


class LaterTranslator:
    """A translator that is made when it is first asked for a page."""

    def __init__(self, columns: Columns, mode: str, make: Callable[[], LoadTimeTranslator]) -> None:
        """`mode`: how it will rewrite, which a hypervisor asks beforehand."""
        self.columns = columns
        self.mode = mode
        self.exchanges_threads = mode in ("inline", "auto")
        """As the ladder of ARM has it."""
        self.made: LoadTimeTranslator | None = None
        self._make = make

    def translate(self, address: int, code: bytes, before: bytes, after: bytes, entry: int) -> Translation:
        """See `paravirt.translator.Translator`."""
        if self.made is None:
            self.made = self._make()
        return self.made.translate(address, code, before, after, entry)


# -- resuming -----------------------------------------------------------------------------------


def options_of(snapshot: Snapshot, *, engine: str | None = None, **changes: Any) -> Options:
    """The options that a snapshot's guest was started with, and changes of them. Raises `BadSnapshot` for ones that
    make no sense."""
    if engine is not None:
        changes["engine"] = engine
    kept = snapshot.description.get("options")
    if not isinstance(kept, dict) or any(
        type(kept.get(name)) is not type(getattr(Options(), name)) for name in _KEPT_OPTIONS
    ):
        raise BadSnapshot(f"{snapshot.path}: does not say how its guest was started; make it anew")
    options = replace(Options(**{name: kept[name] for name in _KEPT_OPTIONS}), **changes)
    if options.mode not in _SAVED_MODES or options.memory != snapshot.machine["size"]:
        raise BadSnapshot(
            f"{snapshot.path}: says that its guest was started in a way in which it cannot be; make it anew"
        )
    return options


class ResumedSession(Session):
    """A session that goes on where a snapshot was taken."""

    def __init__(
        self,
        snapshot: Snapshot,
        console: Callable[[bytes], None],
        image: Path | None = None,
        *,
        engine: str | None = None,
        limits: Limits | None = None,
        timed: bool = False,
        cache: bool = True,
        repeats: bool = False,
    ) -> None:
        """`image`: where the guest's image is now, if not where it was; `engine`: another one to go on with; `repeats`:
        the run is recorded, or done again.

        Raises `BadSnapshot` for a snapshot that cannot be used, `EngineMissing` for an engine that cannot be had.
        """
        limits = limits or Limits()
        self.options = options = options_of(
            snapshot, limits=limits, timed=timed, cache=cache, engine=engine, repeats=repeats
        )
        options.check()
        self.beforehand: Callable[[], Outcome | None] = lambda: None
        """Called right before the guest goes on; an outcome that it gives is the run's."""
        self.snapshot = snapshot
        self.plan = self.attached = None
        self.passed_over: list[str] = []
        named, digest = snapshot.description.get("image"), snapshot.description.get("sha256")
        if not isinstance(named, str) or not isinstance(digest, str):
            raise BadSnapshot(f"{snapshot.path}: does not say of which image its guest is; make it anew")
        self.image_path, self.image_digest = image or Path(named), digest
        if image is not None:
            self._check_image()  # the one where it was is looked at when it is needed, which may be never
        platform, order = platform_of(snapshot.machine["isa"]), snapshot.machine["byte_order"]
        memory = GuestMemory(options.memory, platform.memory_base)
        snapshot.fill(memory)
        try:
            self.machine = Machine(
                options.memory,
                console,
                platform=platform,
                engine=lambda: options.open_engine(platform.isa, self.passed_over, order),
                limits=options.limits,
                memory=memory,
            )
        except BaseException:
            snapshot.stop()
            raise
        try:
            self.later: LaterTranslator | None = None
            translator: Translator = Untouched()
            if options.mode != "none":
                translator = self.later = LaterTranslator(snapshot.columns(), self._strategy, self._make_translator_now)
            make = para_hypervisor_for if options.mode == para.MODE else hypervisor_for
            self.driver: Hypervisor = make(self.machine, translator, timed=options.timed, technique=options.technique)
            self.exact = snapshot.restore(self.driver)
            """Whether it goes on exit for exit as the one that was saved."""
            self.driver.asleep = snapshot.description.get("asleep") is True
        except BaseException:
            snapshot.stop()
            self.machine.close()
            raise

    def _check_image(self) -> None:
        if digest_of(self.image_path) != self.image_digest:
            raise BadSnapshot(
                f"{self.image_path}: is not the image that {self.snapshot.path} is of; name that one with --image"
            )

    @property
    def _strategy(self) -> str:
        """How what is sensitive is rewritten."""
        return para.STRATEGY if self.options.mode == para.MODE else self.options.mode

    @cached_property
    def image(self) -> Image:  # type: ignore[override]
        """The guest's image, read when it is asked for. Raises `BadSnapshot` where it is another than was saved."""
        from bt.image import load

        self._check_image()
        image = load(self.image_path)
        if image.section(MANIFEST) is not None:
            from bt.rewrite import original

            image, manifest = original(image)
            if manifest is not None and manifest.plan.mode == self.options.mode:
                self.plan = manifest.plan
        return image

    @property
    def translator(self) -> LoadTimeTranslator | None:  # type: ignore[override]
        """The translator, once it was needed."""
        return self.later.made if self.later is not None else None

    def _make_translator_now(self) -> LoadTimeTranslator:
        from bt.loadtime import LoadTimeTranslator
        from bt.pagecache import PageCache

        image, options = self.image, self.options
        isa = self.machine.platform.isa
        translator = LoadTimeTranslator(
            self._strategy,
            image,
            options.delta,
            PageCache(isa=isa) if options.cache else None,
            self.plan,
            trapped=must_trap(self.machine.engine.capabilities),
            inlined=without_exit(self.machine.engine.capabilities),
        )
        assert self.later is not None
        try:
            take_translator(self.later.columns, translator, same=self.exact)
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise BadSnapshot(f"{self.snapshot.path}: cannot be gone on with: {brief(str(error))}") from None
        return translator

    @property
    def had_wide_vectors(self) -> bool:
        """Its user code may have found AVX and its like (`Capabilities.wide_vectors`) before."""
        return self.snapshot.description.get("wide_vectors") is True

    @property
    def caution(self) -> str:
        """What may become of the guest on this engine, as a sentence; empty where nothing can."""
        able = self.machine.engine.capabilities
        if able.wide_vectors or not self.had_wide_vectors:
            return ""
        return (
            "programs of this guest may have chosen AVX on the host where they began, and end by SIGILL with the "
            f"{able.name} engine, which has none"
        )

    @property
    def printed(self) -> bytes:
        """The last of what the guest had printed."""
        kept = self.snapshot.description.get("console")
        try:
            return bytes.fromhex(kept) if isinstance(kept, str) else b""
        except ValueError:
            return b""

    def _go(self) -> Outcome:
        ended = self.beforehand()
        if ended is not None:
            return ended
        try:
            self.machine.begin()
            if not self.exact:
                self.machine.arm()
            return self.driver.resume()
        except _IMPOSSIBLE as error:
            where = extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno}: {brief(str(error))}"
            raise BadSnapshot(
                f"{self.snapshot.path}: its machine came to a state that none can have ({what}); it was changed, or "
                "this is an error of retrap's: make it anew, and report it if that comes again"
            ) from error


__all__ = ["ResumedSession", "Snapshot", "options_of", "save_session"]
