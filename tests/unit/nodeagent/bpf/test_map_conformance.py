"""The fake's maps pass the same suite as the kernel's."""

from __future__ import annotations

import pytest

from nodeagent.bpf.abc import Kernel
from nodeagent.bpf.fake import FakeKernel
from tests.support.map_conformance import MapConformance


class TestFakeMap(MapConformance):
    @pytest.fixture
    def kernel(self) -> Kernel:
        return FakeKernel()
