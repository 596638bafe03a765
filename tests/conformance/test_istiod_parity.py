"""What a genuine istiod serves for the same configuration to the same client, message by message and field by field.

`ON_PURPOSE` is all that may differ; it is also the table in `docs/xds.md`.  Anything else fails, and so does an entry
that nothing needs any more.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from controlplane.translate import prepare, translate
from controlplane.translate.names import CLUSTER, ENDPOINT, LISTENER, ROUTE
from tests.support import istiod
from tests.support.ads import AdsStream
from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.mesh import KINDS
from tests.support.parity import Difference, Listed, differences, documented, table, unexplained, unused
from tests.support.tiers import shared
from underpass.api import envoy

URI = envoy.enum_value("envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher.SanType", "URI")
_SANS = "common_tls_context.combined_validation_context.default_validation_context"

ON_PURPOSE = (
    Listed(
        "lds.filter_chains[].filters[].typed_config(HttpConnectionManager).tracing",
        "theirs",
        "It names no provider, so it has an effect only where a proxy's own bootstrap configures a tracer; and it "
        "holds the client's canonical service and revision, so clients of one scope could not share their listeners.",
    ),
    Listed(
        f"cds.*transport_socket.typed_config(UpstreamTlsContext).{_SANS}.match_subject_alt_names",
        "theirs",
        "Deprecated; an Envoy warns of it. The next row says the same.",
    ),
    Listed(
        f"cds.*transport_socket.typed_config(UpstreamTlsContext).{_SANS}.match_typed_subject_alt_names",
        "ours",
        "The field in its place; a SPIFFE identity is a URI, so only URIs are looked at.",
    ),
    Listed(
        f"lds.filter_chains[].transport_socket.typed_config(DownstreamTlsContext).{_SANS}.match_subject_alt_names",
        "theirs",
        "As for clusters.",
    ),
    Listed(
        f"lds.filter_chains[].transport_socket.typed_config(DownstreamTlsContext).{_SANS}.match_typed_subject_alt_names",
        "ours",
        "As for clusters.",
    ),
    Listed(
        "rds.virtual_hosts[].routes[].metadata.filter_metadata{underpass}",
        "ours",
        "Which object, rule, file and line a route comes from: `explain`, `analyze` and NACKs name them. Istio's own "
        "`filter_metadata.istio` beside it is equal.",
    ),
    Listed(
        "lds.filter_chains[].filters[].typed_config(HttpConnectionManager).route_config.virtual_hosts[].routes[]"
        ".metadata.filter_metadata{underpass}",
        "ours",
        "The same for the inbound route of a workload.",
    ),
)


Served = Mapping[str, Mapping[str, Any]]


def _compare(ours: Served, theirs: Served) -> tuple[Difference, ...]:
    """Every difference of one client's resources; the order of resources in a response means nothing."""
    found: list[Difference] = []
    for short, url in KINDS.items():
        mine, wanted = sorted(ours[url]), sorted(theirs[url])
        if mine != wanted:
            found.append(Difference(f"{short}.names", "both", mine, wanted))
        for name in sorted(set(mine) & set(wanted)):
            found.extend(differences(ours[url][name], theirs[url][name], short))
    return tuple(found)


@cache
def compared(case: str, client: str, labelled: bool) -> tuple[Difference, ...]:
    """What our translation differs in."""
    mesh, theirs = istiod.mesh(case), istiod.golden(case, client)
    ours = translate(prepare(mesh), istiod.node(theirs.node, mesh, labelled=labelled))
    return _compare(ours, theirs.resources)


@pytest.mark.needs("shared")
@pytest.mark.parametrize("labelled", [False, True], ids=["bare", "labelled"])
@pytest.mark.parametrize(("case", "client"), istiod.PAIRS)
def test_equal_but_for_what_is_listed(case: str, client: str, labelled: bool) -> None:
    found = unexplained(compared(case, client, labelled), ON_PURPOSE)
    assert not found, "\n".join(str(item) for item in found)


@pytest.mark.needs("shared")
def test_every_listed_difference_still_occurs() -> None:
    found = [item for pair in istiod.PAIRS for item in compared(*pair, False)]
    assert not unused(found, ON_PURPOSE)


@pytest.mark.needs("shared")
@pytest.mark.parametrize(("case", "client"), istiod.PAIRS)
def test_identities_are_those_of_the_deprecated_field(case: str, client: str) -> None:
    """Two rows of the table stand for one another: that must be true of the values as well."""
    found = [item for item in compared(case, client, False) if item.path.endswith("subject_alt_names")]
    assert found or client == "router"
    for old, new in zip(found[::2], found[1::2], strict=True):
        assert old.path.rpartition(".")[0] == new.path.rpartition(".")[0]
        assert [item.matcher for item in new.ours] == list(old.theirs)
        assert {item.san_type for item in new.ours} == {URI}


@pytest.mark.needs("shared")
def test_every_case_is_compared() -> None:
    files = sorted(path.relative_to(shared() / "istiod").parts[:2] for path in (shared() / "istiod").glob("*/*/*.json"))
    assert Counter(files) == dict.fromkeys(istiod.PAIRS, 4)


def _ask(plane: ControlPlaneProcess, node_id: str, metadata: dict[str, Any], *, delta: bool) -> Served:
    """What one stream brings: everything of CDS and LDS, and the endpoints and routes that they name."""
    got: dict[str, dict[str, Any]] = {}
    with AdsStream(plane.xds, delta=delta) as stream:

        def fetch(url: str, names: list[str]) -> None:
            """Names empty: all of the type; the answers may come in parts, and other types' in between."""
            request: Any
            if delta:
                request = envoy.DeltaDiscoveryRequest(type_url=url, resource_names_subscribe=names)
            else:
                request = envoy.DiscoveryRequest(type_url=url, resource_names=names)
            request.node.id = node_id
            request.node.metadata.update(metadata)
            stream.send(request)
            while url not in got or not set(names) <= got[url].keys():
                response = stream.recv()
                stream.ack(response, names if response.type_url == url else [])
                into = got.setdefault(response.type_url, {})
                for item in response.resources:
                    message = envoy.unpack_any(item.resource if delta else item)
                    into[message.cluster_name if response.type_url == ENDPOINT else message.name] = message

        fetch(CLUSTER, [])
        fetch(ENDPOINT, [name for name, item in got[CLUSTER].items() if item.HasField("eds_cluster_config")])
        fetch(LISTENER, [])
        fetch(ROUTE, sorted(_routes(got[LISTENER].values())))
    return got


def _routes(listeners: Iterable[Any]) -> set[str]:
    """Names of the route configurations that listeners fetch."""
    found = set()
    for listener in listeners:
        for chain in (*listener.filter_chains, listener.default_filter_chain):
            for item in chain.filters:
                if item.typed_config.type_url.endswith("HttpConnectionManager"):
                    found.add(envoy.unpack_any(item.typed_config).rds.route_config_name)
    return found - {""}


@pytest.mark.needs("shared")
@pytest.mark.timeout(120)
def test_the_running_control_plane_serves_the_same_in_both_variants(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    with ControlPlaneProcess(config, tmp_path) as plane:
        for case in istiod.CASES:
            before = plane.log.count("configuration in force")
            # one file, replaced in one step: the control plane never reads half of a case
            (tmp_path / "case").write_text("\n---\n".join(istiod.texts(case)), encoding="utf-8")
            (tmp_path / "case").rename(config / "case.yaml")
            wait_for(f"{case} is in force", lambda was=before: plane.log.count("configuration in force") > was)
            for _, client in (pair for pair in istiod.PAIRS if pair[0] == case):
                theirs = istiod.golden(case, client)
                metadata = istiod.metadata(theirs.node, istiod.mesh(case), labelled=True)
                for delta in (False, True):
                    ours = _ask(plane, theirs.node, metadata, delta=delta)
                    found = unexplained(_compare(ours, theirs.resources), ON_PURPOSE)
                    assert not found, f"{case} {client} delta={delta}\n" + "\n".join(map(str, found))


def test_the_page_holds_the_table() -> None:
    inside, wanted = documented("differences from istiod", table(ON_PURPOSE))
    assert inside == wanted, "docs/xds.md: run this test with UNDERPASS_UPDATE_GOLDEN=1"
