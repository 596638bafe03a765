"""A stock Envoy on the port with TLS: by client certificate, and by token; refused as somebody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import shop
from tests.support.certificates import Authority, Issuer
from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.envoy_process import EnvoyProcess

pytestmark = [pytest.mark.needs("envoy"), pytest.mark.timeout(120)]

WEB = "spiffe://cluster.local/ns/default/sa/web"


def envoy(
    scratch: Path,
    plane: ControlPlaneProcess,
    ca: Path,
    name: str,
    account: str,
    *,
    token: str = "",
    certificate: tuple[Path, Path] | None = None,
) -> EnvoyProcess:
    """An Envoy that claims to be a sidecar of *account*."""
    metadata = {
        "NAMESPACE": "default",
        "SERVICE_ACCOUNT": account,
        "INTERCEPTION_MODE": "NONE",
        "INSTANCE_IPS": "127.0.0.1",
    }
    node = f"sidecar~127.0.0.1~{name}.default~default.svc.cluster.local"
    made = EnvoyProcess(scratch, plane.tls, node, metadata, "DELTA_GRPC", name=name)
    tls: dict[str, Any] = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "localhost",
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "validation_context": {
                "trusted_ca": {"filename": str(ca)},
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "localhost"}}],
            },
        },
    }
    if certificate is not None:
        chain, key = (str(path) for path in certificate)
        tls["common_tls_context"]["tls_certificates"] = [
            {"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}
        ]
    [cluster] = made._config["static_resources"]["clusters"]
    cluster["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
    if token:
        [service] = made._config["dynamic_resources"]["ads_config"]["grpc_services"]
        service["initial_metadata"] = [{"key": "authorization", "value": f"Bearer {token}"}]
    return made


def test_envoys_prove_who_they_are(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    shop.write(tmp_path / "config" / "all.yaml", shop.service(0x7000, 8080))
    authority, issuer = Authority(tmp_path), Issuer()
    chain, key = authority.server()
    (tmp_path / "jwks").write_bytes(issuer.jwks)
    flags = ["--tls-listen", "127.0.0.1:0", "--tls-certificate", chain, "--tls-key", key]
    flags += ["--tls-client-ca", authority.ca, "--jwt-keys", tmp_path / "jwks"]
    with ControlPlaneProcess(tmp_path / "config", tmp_path, *map(str, flags)) as plane:
        certificate = authority.workload(WEB)
        with (
            envoy(tmp_path, plane, authority.ca, "by-certificate", "web", certificate=certificate) as one,
            envoy(tmp_path, plane, authority.ca, "by-token", "web", token=issuer.token()) as two,
        ):
            for good in (one, two):
                wait_for("envoy is live", good.ready)
                assert good.rejected() == {}
        with envoy(tmp_path, plane, authority.ca, "thief", "db", certificate=certificate) as thief:
            said = f"{WEB} claims to be service account db"
            wait_for("it is refused", lambda: said in plane.log)
            assert not thief.ready()
    assert "Traceback" not in plane.log
