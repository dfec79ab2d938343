"""`retrap engines`: what is usable here and why not, as probed.

Room: the command line. The probing is `bt.engines`'s; this module prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bt.engines import Report


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(as_json: bool) -> None:
    """Show which CPU engines this host has, and what was found of them.

    Nothing is assumed: every line is the result of an experiment that was made just now.
    """
    from bt.engines import look

    report = look()
    if as_json:
        import json

        click.echo(json.dumps(report.as_json(), indent=2))
        return
    click.echo("\n".join(_lines(report)))


def _lines(report: Report) -> Iterator[str]:
    for engine in report.engines:
        yield f"{engine.name}: " + ("usable" if engine.usable else f"not usable: {engine.why_not}")
        yield f"  instruction sets  {', '.join(engine.instruction_sets)}"
        if engine.usable:
            yield f"  full privilege    {'yes' if engine.capabilities['full_privilege'] else 'no: deprivileged only'}"
            yield f"  deterministic     {'yes' if engine.capabilities['deterministic'] else 'no: it counts host time'}"
            yield f"  an exit           about {engine.capabilities['exit_cost']:g} microseconds"
            if engine.capabilities["crosses"]:
                yield "  system calls      of 64-bit user code need no exit"
        if engine.speed is not None:
            yield f"  compute loop      {engine.speed:.3f} x the speed of the host's own processor"
    device = report.device
    yield ""
    yield f"{device.path}: " + (device.rights if device.exists else "not there")
    if device.exists:
        yield f"  rights            {'may be used' if device.readable_and_writable else 'may not be used by this user'}"
    yield f"  kernel modules    {', '.join(device.modules) or 'none'}"
    yield f"  processor         {device.processor or 'shows neither vmx nor svm'}"
    yield f"  level 3           {report.smoke}"
    if report.quirks:
        yield ""
        yield f"KVM's quirks: {sum(quirk.found for quirk in report.quirks)} found of {len(report.quirks)} looked for"
        for quirk in report.quirks:
            yield f"  {'FOUND' if quirk.found else 'absent':6}  {quirk.name}" + (
                f": {quirk.seen}" if quirk.found else ""
            )
            if quirk.found:
                told = "" if quirk.hidden.startswith("not hidden") else "hidden: "
                yield f"          {told}{quirk.hidden}"
