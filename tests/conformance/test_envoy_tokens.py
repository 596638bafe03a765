"""RequestAuthentication in a stock Envoy: bad tokens of every kind are refused, policies see what good ones claim."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support import shop
from tests.support.backends import Backend, free_port, free_port_on
from tests.support.certificates import Issuer
from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.envoy_process import EnvoyProcess
from tests.support.jose import RsaIssuer

pytestmark = [pytest.mark.needs("envoy"), pytest.mark.timeout(120)]

NODE = "router~127.0.0.1~edge-1.default~default.svc.cluster.local"
METADATA = {"NAMESPACE": "default", "LABELS": {"app": "edge"}, "INSTANCE_IPS": "127.0.0.1"}
KEYS = "127.0.0.5"
RSA, EC = "https://rsa.test", "https://ec.test"


class KeyServer:
    """Serves a key set over plain HTTP; a context manager."""

    def __init__(self, port: int, keys: str) -> None:
        asked = self.asked = list[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("content-length", str(len(keys)))
                self.end_headers()
                self.wfile.write(keys.encode())

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server((KEYS, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  selector: {app: edge}
  servers: [{port: {number: %d, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge, namespace: default}
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
  - match: [{headers: {"@request.auth.claims.team": {exact: blue}}, uri: {prefix: /team}}]
    route: [{destination: {host: greeter, subset: v2}}]
  - match: [{uri: {prefix: /team}}]
    directResponse: {status: 418}
  - route: [{destination: {host: greeter, subset: v1}}]
"""

POLICIES = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: default}
spec:
  selector: {matchLabels: {app: edge}}
  jwtRules:
  - issuer: %(rsa)s
    audiences: [shop]
    jwksUri: %(uri)s
    forwardOriginalToken: true
    outputPayloadToHeader: x-payload
    outputClaimToHeaders: [{header: x-user, claim: sub}, {header: x-team, claim: org.team}]
  - issuer: %(ec)s
    jwks: '%(jwks)s'
    fromHeaders: [{name: x-token, prefix: "Token "}]
    fromParams: [token]
    fromCookies: [session]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: claims, namespace: default}
spec:
  selector: {matchLabels: {app: edge}}
  rules:
  - to: [{operation: {paths: [/open]}}]
  - to: [{operation: {paths: [/any, /team*]}}]
    from: [{source: {requestPrincipals: ["*"]}}]
  - to: [{operation: {paths: [/alice]}}]
    from: [{source: {requestPrincipals: ["https://rsa.test/alice"]}}]
  - to: [{operation: {paths: [/blue]}}]
    when: [{key: "request.auth.claims[org][team]", values: [blue]}]
  - to: [{operation: {paths: [/scope]}}]
    when: [{key: "request.auth.claims[scope]", values: [write]}]
  - to: [{operation: {paths: [/audience]}}]
    when: [{key: request.auth.audiences, values: [shop]}, {key: request.auth.presenter, notValues: [evil]}]
"""


@dataclass
class Edge:
    """A gateway in front of a service, with tokens checked."""

    port: int
    keys: KeyServer
    envoy: EnvoyProcess
    plane: ControlPlaneProcess
    policies: Path
    rsa: RsaIssuer = field(default_factory=lambda: RsaIssuer(RSA))
    ec: Issuer = field(default_factory=Issuer)

    def call(self, path: str, token: str = "", **headers: str) -> tuple[int, dict[str, Any]]:
        """Status, and what reached the server; 0 when the connection was broken off."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            sent["authorization"] = f"Bearer {token}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers=sent)
            reply = connection.getresponse()
            body = reply.read()
            return reply.status, json.loads(body) if reply.status == 200 else {}
        except OSError:
            return 0, {}
        finally:
            connection.close()

    def status(self, path: str, token: str = "", **headers: str) -> int:
        return self.call(path, token, **headers)[0]

    def write(self, uri: str) -> None:
        values = {"rsa": RSA, "ec": EC, "uri": uri, "jwks": self.ec.jwks.decode()}
        shop.write(self.policies, POLICIES % values)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    scratch = tmp_path_factory.mktemp("tokens")
    config = scratch / "config"
    config.mkdir()
    target, port, keys_port = free_port_on(shop.POD_V1, shop.POD_V2), free_port("0.0.0.0"), free_port(KEYS)
    shop.write(config / "service.yaml", shop.service(80, target))
    shop.write(config / "gateway.yaml", GATEWAY % port)
    rsa = RsaIssuer(RSA)
    with ExitStack() as stack:
        stack.enter_context(Backend(shop.POD_V1, target, "v1"))
        stack.enter_context(Backend(shop.POD_V2, target, "v2"))
        keys = stack.enter_context(KeyServer(keys_port, rsa.jwks))
        plane = stack.enter_context(ControlPlaneProcess(config, scratch))
        envoy = stack.enter_context(EnvoyProcess(scratch, plane.xds, NODE, METADATA, "DELTA_GRPC"))
        made = Edge(port, keys, envoy, plane, config / "policies.yaml", rsa)
        made.write(f"http://{KEYS}:{keys_port}/keys")
        wait_for("envoy is live", envoy.ready)
        wait_for("tokens are checked", lambda: made.status("/any") == 403)
        wait_for("keys were fetched", lambda: made.status("/any", rsa.token()) == 200)
        yield made
        assert envoy.rejected() == {}
        assert plane.json("/debug/push_status")["refusals"] == []


def test_good_tokens_pass_with_what_they_claim(edge: Edge) -> None:
    assert edge.keys.asked
    assert set(edge.keys.asked) == {"/keys"}
    assert edge.status("/open") == 200, "no token is no error"
    assert [edge.status(path) for path in ("/any", "/alice", "/blue", "/scope", "/audience")] == [403] * 5
    token = edge.rsa.token(org={"team": "blue"}, scope="read write", azp="friend", aud=["other", "shop"])
    for path in ("/open", "/any", "/alice", "/blue", "/scope", "/audience"):
        assert edge.status(path, token) == 200, path
    assert edge.status("/none", token) == 403
    assert edge.status("/alice", edge.rsa.token(sub="bob")) == 403
    assert edge.status("/blue", edge.rsa.token(org={"team": "red"})) == 403
    assert edge.status("/scope", edge.rsa.token(scope="read")) == 403
    assert edge.status("/audience", edge.rsa.token(azp="evil")) == 403
    _, seen = edge.call("/any", token, x_user="root", x_payload="forged", x_team="forged")
    got = {name.lower(): value for name, value in seen["headers"].items()}
    assert (got["x-user"], got["x-team"]) == ("alice", "blue")
    payload = got["x-payload"]
    assert json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"] == "alice"
    assert got["authorization"] == f"Bearer {token}", "forwardOriginalToken"
    _, seen = edge.call("/open", x_user="root", x_payload="forged", x_team="forged")
    got = {name.lower(): value for name, value in seen["headers"].items()}
    assert not {"x-user", "x-payload", "x-team"} & set(got), "what only a token may say is taken out"


def test_every_place_that_a_token_may_be_in(edge: Edge) -> None:
    token = edge.ec.token(iss=EC, sub="eve")
    assert edge.status("/any", x_token=f"Token {token}") == 200
    assert edge.status(f"/any?token={token}") == 200
    assert edge.status("/any", cookie=f"a=b; session={token}") == 200
    assert edge.status("/alice", x_token=f"Token {token}") == 403
    assert edge.status("/any", token) == 401, "this issuer's tokens are not looked for there, and the other's are"
    _, seen = edge.call("/any", x_token=f"Token {token}")
    assert "x-token" not in {name.lower() for name in seen["headers"]}, "a token is not forwarded unasked"


def test_claims_decide_on_the_route(edge: Edge) -> None:
    assert edge.call("/team", edge.rsa.token(team=["blue"]))[1]["name"] == "v2"
    assert edge.status("/team", edge.rsa.token(team=["red"])) == 418


def test_bad_tokens_are_refused(edge: Edge) -> None:
    rsa = edge.rsa
    now = int(time.time())
    body = json.dumps(rsa.body())
    good = rsa.token()
    bad = {
        "none": rsa.unsigned(),
        "None": rsa.unsigned("None"),
        "no signature": rsa.unsigned("RS256"),
        "wrong key": RsaIssuer(RSA).token(),
        "wrong key id": rsa.sign(body, kid="../../dev/null"),
        "another issuer": RsaIssuer("https://evil.test").token(),
        "another issuer's key": RsaIssuer(EC).token(),
        "RS/HS confusion, PEM": rsa.confused(rsa.pem),
        "RS/HS confusion, key set": rsa.confused(rsa.jwks.encode()),
        "the key in the token": RsaIssuer(RSA).sign(body, jwk=json.loads(RsaIssuer(RSA).jwks)["keys"][0]),
        "expired": rsa.token(exp=now - 3600),
        "not yet": rsa.token(nbf=now + 3600),
        "wrong audience": rsa.token(aud="bank"),
        "no audience": rsa.token(aud=None),
        "no issuer": rsa.token(iss=None),
        "a number as issuer": rsa.token(iss=7),
        "not a token": "a.b.c",
        "two parts": ".".join(good.split(".")[:2]),
        "changed": good[:-8] + "AAAAAAAA",
        "a body that is no JSON": rsa.sign("{"),
        "a body that is a list": rsa.sign("[]"),
    }
    for name, token in bad.items():
        # An Envoy forbids a good token that is for somebody else, and knows nobody behind a bad one; as in Istio.
        refusal = 403 if "audience" in name else 401
        assert edge.status("/any", token) == refusal, name
        assert edge.status("/open", token) == refusal, f"{name}: a bad token is worse than none"
    assert edge.status("/any", good) == 200
    assert edge.status("/any", rsa.token(junk="x" * 100 * 1024)) in (0, 431), "100 KiB"


def test_claims_that_stand_twice_never_widen(edge: Edge) -> None:
    exp = int(time.time()) + 600
    pair = f'"iss": "{RSA}", "aud": "shop", "exp": {exp}'
    twice = edge.rsa.sign(f'{{{pair}, "sub": "bob", "sub": "alice"}}')
    assert edge.status("/alice", twice) in (401, 403)
    assert edge.status("/alice", edge.rsa.sign(f'{{{pair}, "sub": "alice", "sub": "bob"}}')) in (401, 403)
    assert edge.status("/any", edge.rsa.sign(f'{{{pair}, "sub": "alice", "exp": 1}}')) == 401
    assert edge.status("/any", edge.rsa.sign(f'{{"exp": 1, {pair}, "sub": "alice"}}')) == 401


def test_two_tokens_must_both_be_good_or_one_alone_counts(edge: Edge) -> None:
    good, other = edge.rsa.token(), edge.ec.token(iss=EC, sub="eve")
    assert edge.status("/any", good, x_token=f"Token {other}") == 200
    assert edge.status("/alice", RsaIssuer(RSA).token(), x_token=f"Token {other}") != 200


def test_without_keys_everything_is_refused(edge: Edge) -> None:
    """Last in this module: it takes the keys away."""
    token = edge.rsa.token()
    assert edge.status("/any", token) == 200
    edge.write(f"http://{KEYS}:{free_port(KEYS)}/keys")
    wait_for("nobody has keys", lambda: edge.status("/any", token) == 401)
    assert edge.status("/open", token) == 401
    assert edge.status("/open") == 200
    edge.policies.write_text(edge.policies.read_text().replace(f"jwksUri: http://{KEYS}", "timeout: 1s #"))
    wait_for("the rule has no keys at all", lambda: "no-keys" in str(edge.plane.json("/api/v1/config/status")))
    time.sleep(0.5)
    assert edge.status("/any", token) == 401
    assert edge.status("/any", edge.ec.token(iss=EC), x_token="Token x") == 401
