"""Keys of virtual hosts and the order in which domains are tried."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.abi.numbers import HOST_MAX, Reason
from nodeagent.core.libcore import HeadReader
from tests.support.core_memory import core
from tests.support.hostile_heads import get

pytestmark = pytest.mark.needs("core")

SUFFIXES = 8  # UP_LABELS_MAX of core/hosts.h


@pytest.fixture(scope="module")
def reader() -> HeadReader:
    return HeadReader(core())


def ask(reader: HeadReader, host: str) -> Reason:
    return Reason(reader.parse(get(host=b"Host: " + host.encode())).reason)


@pytest.mark.parametrize(
    ("host", "key", "port"),
    [
        ("a", "a", False),
        ("Reviews.Default.SVC", "reviews.default.svc", False),
        ("a:80", "a", True),
        ("a:65535", "a", True),
        ("10.0.0.1", "10.0.0.1", False),
        ("10.0.0.1:8080", "10.0.0.1", True),
        ("[::1]", "[::1]", False),
        ("[FD00::A]:8080", "[fd00::a]", True),
        ("a_b-c", "a_b-c", False),
        ("a.", "a.", False),
    ],
)
def test_key(reader: HeadReader, host: str, key: str, port: bool) -> None:
    assert ask(reader, host) == Reason.OK
    assert (reader.host().decode(), reader.has_port) == (key, port)


def expected_domains(host: str) -> list[str]:
    """Envoy's order: the host itself, wildcards from the longest suffix to the shortest, everything."""
    labels = host.split(".")
    wide = ["*." + ".".join(labels[k:]) for k in range(1, len(labels))]
    return [host, *[w for w in wide if w != "*."], "*"]


@pytest.mark.parametrize(
    "host", ["a", "a.b", "a.b.c", "x.reviews.default.svc.cluster.local", ".".join("abcdefghi"), "a" * (HOST_MAX - 1)]
)
def test_domains_in_envoys_order(reader: HeadReader, host: str) -> None:
    assert ask(reader, host) == Reason.OK
    assert [d.rstrip(b"\0").decode() for d in reader.domains()] == expected_domains(host)


_LABEL = st.text(alphabet="abz09-_", min_size=1, max_size=12)


def test_a_host_with_more_suffixes_than_are_looked_up_is_not_ours(reader: HeadReader) -> None:
    """Its longest wildcards would be passed over in silence."""
    assert ask(reader, ".".join("a" * (SUFFIXES + 1))) == Reason.OK
    assert ask(reader, ".".join("a" * (SUFFIXES + 2))) == Reason.BAD_HOST


@settings(deadline=None)
@given(labels=st.lists(_LABEL, min_size=1, max_size=12), port=st.sampled_from(["", ":1", ":8080"]))
def test_domains_of_any_host(reader: HeadReader, labels: list[str], port: str) -> None:
    host = ".".join(labels)[: HOST_MAX - 1].rstrip(".")
    if host.count(".") > SUFFIXES:
        assert ask(reader, host.upper() + port) == Reason.BAD_HOST
        return
    assert ask(reader, host.upper() + port) == Reason.OK
    domains = reader.domains()
    assert [d.rstrip(b"\0").decode() for d in domains] == expected_domains(host)
    assert {len(d) for d in domains} == {HOST_MAX}
    # padded: equal domains are equal keys, whatever was looked up before
    assert all(d == d.rstrip(b"\0").ljust(HOST_MAX, b"\0") for d in domains)


def test_a_key_has_nothing_of_the_one_before(reader: HeadReader) -> None:
    ask(reader, "long.name.of.a.service.somewhere")
    list(reader.domains())
    ask(reader, "b.c")
    assert [d.rstrip(b"\0") for d in reader.domains()] == [b"b.c", b"*.c", b"*"]


def test_names_of_reasons() -> None:
    names = [core().reason_name(reason) for reason in Reason if reason != Reason.LAST]
    assert len(set(names)) == len(names)
    assert core().reason_name(Reason.LAST) == "unknown"
    assert core().reason_name(1 << 31) == "unknown"
