"""The kernel's maps pass the same suite as the fake's."""

from __future__ import annotations

import pytest

from nodeagent.bpf.abc import Kernel
from nodeagent.bpf.kernel import LinuxKernel
from tests.support.map_conformance import MapConformance

pytestmark = [pytest.mark.bpf, pytest.mark.root]


class TestKernelMap(MapConformance):
    @pytest.fixture
    def kernel(self) -> Kernel:
        return LinuxKernel()
