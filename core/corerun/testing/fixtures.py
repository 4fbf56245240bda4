"""Pytest fixtures for plugin authors; a ``conftest.py`` asks for them by name.

``pytest_plugins = ["corerun.testing.fixtures"]``
"""

from __future__ import annotations

import pytest

from corerun.testing.fake import FakeProvider


@pytest.fixture
def fake_provider() -> type[FakeProvider]:
    """The class `FakeProvider`; call it with replies: ``fake_provider(["first", {"second": 2}])``."""
    return FakeProvider
