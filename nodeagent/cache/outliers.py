"""A cluster's `outlier_detection` -> values."""

from __future__ import annotations

from typing import Any, Final

from nodeagent.cache.decode import leftovers
from nodeagent.cache.resources import Outlier

#: What is read, and what changes nothing: an ejection may last longer by a jitter, which may be 0; there are no active
#: health checks that could end one; errors of our own making count like the endpoint's, unless they are split off.
_KNOWN: Final = (
    "consecutive_5xx",
    "enforcing_consecutive_5xx",
    "consecutive_gateway_failure",
    "enforcing_consecutive_gateway_failure",
    "interval",
    "base_ejection_time",
    "max_ejection_time",
    "max_ejection_time_jitter",
    "max_ejection_percent",
    "always_eject_one_host",
    "enforcing_success_rate",
    "success_rate_minimum_hosts",
    "success_rate_request_volume",
    "success_rate_stdev_factor",
    "enforcing_failure_percentage",
    "failure_percentage_threshold",
    "failure_percentage_minimum_hosts",
    "failure_percentage_request_volume",
    "consecutive_local_origin_failure",
    "enforcing_consecutive_local_origin_failure",
    "enforcing_local_origin_success_rate",
    "enforcing_failure_percentage_local_origin",
    "successful_active_health_check_uneject_host",
)
_NAMES: Final = {"split_external_local_origin_errors": "outlier-local-origin"}
_NANO: Final = 1e-9


def outlier_of(cluster: Any) -> tuple[Outlier | None, list[str]]:
    """The policy of an envoy.config.cluster.v3.Cluster, None without one; and what of it is not carried, by name."""
    if not cluster.HasField("outlier_detection"):
        return None, []
    message = cluster.outlier_detection
    extra = leftovers(message, _KNOWN, _NAMES)
    if _number(message, "enforcing_success_rate", 100):
        extra.append("outlier-success-rate")
    if _number(message, "enforcing_failure_percentage", 0):
        extra.append("outlier-failure-percentage")
    enforced = (
        _number(message, "enforcing_consecutive_5xx", 100),
        _number(message, "enforcing_consecutive_gateway_failure", 0),
    )
    if any(0 < percent < 100 for percent in enforced):
        extra.append("outlier-enforced-at-random")
    base = _seconds(message, "base_ejection_time", 30.0)
    return (
        Outlier(
            errors=_number(message, "consecutive_5xx", 5) if enforced[0] else 0,
            gateway=_number(message, "consecutive_gateway_failure", 5) if enforced[1] else 0,
            interval=_seconds(message, "interval", 10.0),
            base=base,
            longest=_seconds(message, "max_ejection_time", max(300.0, base)),
            percent=min(100, _number(message, "max_ejection_percent", 10)),
            one=message.always_eject_one_host.value,
        ),
        extra,
    )


def _number(message: Any, field: str, default: int) -> int:
    return int(getattr(message, field).value) if message.HasField(field) else default


def _seconds(message: Any, field: str, default: float) -> float:
    if not message.HasField(field):
        return default
    value = getattr(message, field)
    return float(value.seconds + value.nanos * _NANO)
