"""DestinationRule: what istiod refuses.  Pure."""

from __future__ import annotations

from typing import Any, Final

from controlplane.model.objects import Config
from controlplane.sources.findings import Findings

MAX_MAGLEV: Final = 5_000_011


def destination_rule(config: Config, out: Findings) -> None:
    """Check a DestinationRule."""
    spec = config.spec
    out.host(spec.host, "host")
    if spec.HasField("traffic_policy"):
        traffic_policy(spec.traffic_policy, "trafficPolicy", out)
    names: set[str] = set()
    for index, subset in enumerate(spec.subsets):
        path = f"subsets[{index}]"
        if not subset.name:
            out.error("no-name", "a subset needs a name", path)
        else:
            out.label(subset.name, "subset", path)
        if subset.name in names:
            out.error("duplicate-subset", f"subset {subset.name!r} is defined twice", path)
        names.add(subset.name)
        if subset.HasField("traffic_policy"):
            traffic_policy(subset.traffic_policy, f"{path}.trafficPolicy", out)
    out.export_to(spec.export_to)


def traffic_policy(policy: Any, path: str, out: Findings) -> None:
    """Check a traffic policy of a host or a subset."""
    if not policy.ListFields():
        out.error("empty-policy", "the traffic policy says nothing", path)
    _blocks(policy, path, out)
    for index, level in enumerate(policy.port_level_settings):
        here = f"{path}.portLevelSettings[{index}]"
        out.port(level.port.number, f"{here}.port")
        _blocks(level, here, out)
    if policy.HasField("tunnel"):
        tunnel = policy.tunnel
        if tunnel.protocol not in ("", "CONNECT", "POST"):
            out.error(
                "bad-tunnel", f"tunnel protocol {tunnel.protocol!r} is neither CONNECT nor POST", f"{path}.tunnel"
            )
        out.host(tunnel.target_host, f"{path}.tunnel")
        out.port(tunnel.target_port, f"{path}.tunnel")
    if policy.HasField("retry_budget"):
        out.percent(policy.retry_budget.percent.value, f"{path}.retryBudget")


def _blocks(policy: Any, path: str, out: Findings) -> None:
    if policy.HasField("outlier_detection"):
        _outlier(policy.outlier_detection, f"{path}.outlierDetection", out)
    if policy.HasField("connection_pool"):
        connection_pool(policy.connection_pool, f"{path}.connectionPool", out)
    if policy.HasField("load_balancer"):
        _balancer(policy.load_balancer, f"{path}.loadBalancer", out)
    if policy.HasField("tls"):
        _tls(policy.tls, f"{path}.tls", out)


def _outlier(outlier: Any, path: str, out: Findings) -> None:
    out.duration(outlier, "interval", f"{path}.interval")
    out.duration(outlier, "base_ejection_time", f"{path}.baseEjectionTime")
    out.percent(outlier.max_ejection_percent, f"{path}.maxEjectionPercent")
    out.percent(outlier.min_health_percent, f"{path}.minHealthPercent")
    if outlier.consecutive_local_origin_failures.value and not outlier.split_external_local_origin_errors:
        out.error("bad-outlier", "consecutiveLocalOriginFailures needs splitExternalLocalOriginErrors: true", path)


def connection_pool(pool: Any, path: str, out: Findings) -> None:
    """Check connection pool limits."""
    if not (pool.HasField("tcp") or pool.HasField("http")):
        out.error("empty-policy", "the connection pool needs tcp or http", path)
    tcp, http = pool.tcp, pool.http
    for message, name, shown in (
        (tcp, "max_connections", "tcp.maxConnections"),
        (http, "http1_max_pending_requests", "http.http1MaxPendingRequests"),
        (http, "http2_max_requests", "http.http2MaxRequests"),
        (http, "max_requests_per_connection", "http.maxRequestsPerConnection"),
        (http, "max_retries", "http.maxRetries"),
        (http, "max_concurrent_streams", "http.maxConcurrentStreams"),
    ):
        if getattr(message, name) < 0:
            out.error("bad-limit", f"{shown} is negative", f"{path}.{shown}")
    out.duration(tcp, "connect_timeout", f"{path}.tcp.connectTimeout")
    out.duration(tcp, "max_connection_duration", f"{path}.tcp.maxConnectionDuration")
    out.duration(tcp, "idle_timeout", f"{path}.tcp.idleTimeout", zero=True)
    out.duration(http, "idle_timeout", f"{path}.http.idleTimeout", zero=True)
    if http.use_client_protocol and http.h2_upgrade_policy == 2:
        out.error("conflicting-settings", "useClientProtocol and h2UpgradePolicy UPGRADE exclude each other", path)


def _balancer(balancer: Any, path: str, out: Findings) -> None:
    if balancer.WhichOneof("lb_policy") == "consistent_hash":
        hashed = balancer.consistent_hash
        key = hashed.WhichOneof("hash_key")
        if key is None:
            out.error(
                "bad-balancer",
                "consistentHash needs a key: httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName",
                f"{path}.consistentHash",
            )
        if key == "http_cookie" and not hashed.http_cookie.name:
            out.error("bad-balancer", "httpCookie.name is missing", f"{path}.consistentHash")
        if hashed.WhichOneof("hash_algorithm") == "maglev":
            size = hashed.maglev.table_size
            if size and (size >= MAX_MAGLEV or not _prime(size)):
                out.error(
                    "bad-balancer",
                    f"maglev.tableSize {size} is not a prime below {MAX_MAGLEV}",
                    f"{path}.consistentHash",
                )
    if balancer.HasField("warmup_duration_secs"):
        out.note("deprecated", "warmupDurationSecs is deprecated; use warmup.duration", f"{path}.warmupDurationSecs")
    if balancer.HasField("locality_lb_setting"):
        locality(balancer.locality_lb_setting, f"{path}.localityLbSetting", out)


def _prime(number: int) -> bool:
    if number < 2:
        return False
    divisor = 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            return False
        divisor += 1
    return True


def locality(setting: Any, path: str, out: Findings) -> None:
    """Check locality load balancing: one of distribute, failover and failoverPriority."""
    given = [name for name in ("distribute", "failover", "failover_priority") if getattr(setting, name)]
    if "distribute" in given and len(given) > 1:
        out.error("conflicting-settings", "distribute excludes failover and failoverPriority", path)
    sources: set[str] = set()
    for index, item in enumerate(setting.distribute):
        here = f"{path}.distribute[{index}]"
        if getattr(item, "from") in sources:
            out.error("bad-locality", f"locality {getattr(item, 'from')!r} is distributed twice", here)
        sources.add(getattr(item, "from"))
        total = sum(item.to.values())
        if total != 100:
            out.error("bad-locality", f"the weights from {getattr(item, 'from')!r} add up to {total}, not 100", here)
    for index, item in enumerate(setting.failover):
        source, target = getattr(item, "from"), item.to
        if source == target:
            out.error("bad-locality", f"failover from {source!r} to itself", f"{path}.failover[{index}]")
        if "/" in source or "/" in target or "*" in source or "*" in target:
            out.error("bad-locality", "failover takes regions, without zone or wildcard", f"{path}.failover[{index}]")


def _tls(tls: Any, path: str, out: Findings) -> None:
    mode = tls.mode
    files = (tls.client_certificate, tls.private_key)
    if mode == 2:  # MUTUAL
        if tls.credential_name:
            if any(files) or tls.ca_certificates:
                out.error("bad-tls", "credentialName excludes certificate files", path)
        elif not all(files):
            out.error("bad-tls", "mode MUTUAL needs clientCertificate and privateKey, or credentialName", path)
    elif mode == 1 and tls.credential_name and tls.ca_certificates:
        out.error("bad-tls", "credentialName excludes caCertificates", path)
    elif mode == 3 and (any(files) or tls.ca_certificates or tls.credential_name):
        out.error("bad-tls", "mode ISTIO_MUTUAL uses the mesh's certificates; no others can be given", path)
    if tls.insecure_skip_verify.value and (tls.ca_certificates or tls.subject_alt_names):
        out.error("bad-tls", "insecureSkipVerify excludes caCertificates and subjectAltNames", path)
