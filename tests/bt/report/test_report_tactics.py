"""Every tactic that there is has its place in the reports."""

from __future__ import annotations

from bt.report.html import CLASSES, CONFIDENCES, PAGE, TACTICS
from bt.scan import Confidence
from bt.tactics.tactics import Tactic
from emulator.isa.sensitive import UserBehaviour


def test_the_page_explains_and_colours_every_tactic() -> None:
    assert list(TACTICS) == [tactic.value for tactic in Tactic]
    style = (PAGE / "style.css").read_text()
    for name in (*TACTICS, "other"):
        # Light; dark by the system; dark by the switch.
        assert style.count(f"--tactic-{name}: #") == 3


def test_the_page_orders_every_class_and_confidence() -> None:
    assert set(CLASSES) == {behaviour.value for behaviour in UserBehaviour}
    assert list(CONFIDENCES) == [confidence.value for confidence in Confidence]
