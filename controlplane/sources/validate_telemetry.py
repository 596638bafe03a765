"""Telemetry: what istiod refuses, and filters that an Envoy might.  Pure."""

from __future__ import annotations

from controlplane.model.objects import Config
from controlplane.sources.expressions import ExpressionError, check
from controlplane.sources.findings import Findings
from controlplane.sources.validate_tokens import targets, whole_proxies


def telemetry(config: Config, out: Findings) -> None:
    """Check a Telemetry."""
    targets(config, out)
    whole_proxies(config, out)
    if config.spec.access_logging:
        out.note("envoys-only", "accessLogging is for Envoys of this control plane; the kernel writes no access log")
    for index, entry in enumerate(config.spec.access_logging):
        path = f"accessLogging[{index}]"
        for number, provider in enumerate(entry.providers):
            if not provider.name:
                out.error("no-name", "a provider needs a name", f"{path}.providers[{number}]")
        if entry.HasField("filter"):
            try:
                check(entry.filter.expression)
            except ExpressionError as error:
                out.error("bad-expression", f"filter.expression: {error}", f"{path}.filter")
