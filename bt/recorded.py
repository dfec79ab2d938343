"""Recordings of sessions: what was run, in words that a later process understands, and the session made of them again.

Room: `bt`. A recording names image and initial file system by path and hash; a run that began from a snapshot names
that. `paravirt.services.record` does the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt.session import Options, Session, read_initrd
from bt.snapshot import _KEPT_OPTIONS, ResumedSession, Snapshot, digest_of
from emulator.errors import BadSnapshot
from emulator.machine import Limits
from paravirt.modes import DEAR

if TYPE_CHECKING:
    from emulator.engine.protocol import Capabilities
    from paravirt.services.recording import Recording


def described(session: Session, initrd: Path | None) -> dict[str, Any]:
    """What a recording says of the run that it is of."""
    options = session.options
    told: dict[str, Any] = {
        "options": {name: getattr(options, name) for name in _KEPT_OPTIONS},
        "guest_seconds": options.limits.guest_seconds,
        "initrd": None if initrd is None else str(initrd.resolve()),
        "initrd_sha256": hashlib.sha256(options.initrd).hexdigest() if options.initrd else None,
        "snapshot": None,
    }
    if isinstance(session, ResumedSession):
        image, digest = session.image_path, session.image_digest
        told["snapshot"] = {"path": str(session.snapshot.path.resolve()), "id": session.snapshot.identity}
    else:
        image = Path(session.image_file)
        digest = digest_of(image)
    capabilities = session.machine.engine.capabilities
    told["options"]["engine"] = capabilities.name  # not the fastest of a later day
    if capabilities.lands:
        told["host"], told["processor"] = _host(capabilities), session.machine.engine.processor
    told["image"], told["sha256"] = str(image.resolve()), digest
    return told


def _host(capabilities: Capabilities) -> dict[str, Any]:
    """What the exits of a guest depend on, of an engine that is as its host is."""
    told = asdict(capabilities)
    told["exit_cost"] = capabilities.exit_cost >= DEAR
    return json.loads(json.dumps(told))  # type: ignore[no-any-return]


def session_of(
    recording: Recording, console: Callable[[bytes], None], image: Path | None = None, *, cache: bool = True
) -> Session:
    """The session that was recorded, at its beginning. Raises `BadSnapshot` where what it needs is another now."""
    session = _begun(recording, console, image, cache=cache)
    capabilities, told = session.machine.engine.capabilities, recording.run.get("host")
    if told != (_host(capabilities) if capabilities.lands else None):
        session.close()
        raise BadSnapshot(
            f"{recording.path}: is of a run on another host, whose {capabilities.name} engine was otherwise; replay it "
            "there, or record the run anew"
        )
    if capabilities.lands and isinstance(recording.run.get("processor"), int):
        session.machine.engine.processor = recording.run["processor"]
    return session


def _begun(recording: Recording, console: Callable[[bytes], None], image: Path | None, *, cache: bool) -> Session:
    run = recording.run
    try:
        path = image or Path(str(run["image"]))
        limits = Limits(guest_seconds=None if run["guest_seconds"] is None else float(run["guest_seconds"]))
        if run["snapshot"] is not None:
            return _resumed(recording, console, path, limits, cache=cache)
        usual = Options()
        kept = {name: type(getattr(usual, name))(run["options"][name]) for name in _KEPT_OPTIONS}
        initrd = b"" if run["initrd"] is None else read_initrd(Path(str(run["initrd"])))
        wanted = run["initrd_sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise BadSnapshot(f"{recording.path}: does not say what was run ({error}); record the run anew") from None
    if digest_of(path) != run["sha256"]:
        raise BadSnapshot(f"{path}: is not the image that {recording.path} is of; name that one with --image")
    if initrd and hashlib.sha256(initrd).hexdigest() != wanted:
        raise BadSnapshot(f"{run['initrd']}: is not what the guest had when it was recorded; put that back")
    from bt.image import load

    options = replace(Options(**kept), initrd=initrd, limits=limits, cache=cache, repeats=True)
    return Session(load(path), options, console)


def _resumed(
    recording: Recording, console: Callable[[bytes], None], image: Path, limits: Limits, *, cache: bool
) -> Session:
    named = recording.run["snapshot"]
    snapshot = Snapshot(Path(str(named["path"])))
    if snapshot.identity != named["id"]:
        raise BadSnapshot(f"{snapshot.path}: is not the snapshot that {recording.path} began from; put that back")
    engine = str(recording.run["options"]["engine"])
    return ResumedSession(snapshot, console, image, engine=engine, limits=limits, cache=cache, repeats=True)
