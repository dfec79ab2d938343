"""What holds for all tests: no example of hypothesis is judged by how long it took on a busy host."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("retrap", deadline=None)
settings.load_profile("retrap")
