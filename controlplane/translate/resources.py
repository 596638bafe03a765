"""The result of translation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Message = Any
"""An upb message of :mod:`underpass.api.envoy`; shared, never to be modified."""

Resources = Mapping[str, Mapping[str, Message]]
"""Type URL -> resource name -> message."""
