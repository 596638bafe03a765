"""Conversations of one view's session, as scripts."""

from __future__ import annotations

import pytest

from nodeagent.xds.session import CDS, EDS, LDS, RDS, Request, Resource, Response, Session


def res(url: str, name: str, version: str = "1", body: bytes | None = b"x") -> Resource:
    return Resource(name, version, url, body)


def answer(url: str, nonce: str, *names: str, removed: tuple[str, ...] = (), version: str = "1") -> Response:
    return Response(url, nonce, tuple(res(url, name, version) for name in names), removed)


def opened() -> Session:
    session = Session()
    session.open()
    return session


def take(session: Session, response: Response, refused: dict[str, str] | None = None) -> tuple[Request, ...]:
    update, answers = session.receive(response)
    assert update is not None
    assert answers == ()
    return session.applied(update, refused or {})


def test_a_stream_opens_with_wildcards_only() -> None:
    assert Session().open() == (Request(CDS), Request(LDS))


def test_names_are_subscribed_when_they_are_known_and_only_what_changes_is_said() -> None:
    session = opened()
    assert session.want(RDS, ["80", "9080"]) == (Request(RDS, subscribe=("80", "9080")),)
    assert session.want(RDS, ["80", "9080"]) == ()
    assert session.want(RDS, ["80", "x"]) == (Request(RDS, subscribe=("x",), unsubscribe=("9080",)),)
    assert session.want(RDS, []) == (Request(RDS, unsubscribe=("80", "x")),)


def test_a_named_type_without_names_is_never_opened() -> None:
    session = opened()
    session.want(EDS, ["a"])
    session.want(EDS, [])
    session.close()
    assert [request.type_url for request in session.open()] == [CDS, LDS]


def test_an_answer_is_confirmed_after_it_was_applied() -> None:
    session = opened()
    assert take(session, answer(CDS, "n1", "a")) == (Request(CDS, nonce="n1"),)
    assert session.versions(CDS) == {"a": "1"}


def test_a_refusal_names_each_resource_and_keeps_the_good_ones() -> None:
    session = opened()
    (request,) = take(session, answer(CDS, "n1", "a", "b"), {"b": "no good"})
    assert request.error == "b: no good"
    assert session.versions(CDS) == {"a": "1"}
    assert dict(session.status()[0].refused) == {"b": "no good"}
    take(session, answer(CDS, "n2", "b", version="2"))
    assert session.versions(CDS) == {"a": "1", "b": "2"}
    assert dict(session.status()[0].refused) == {}


def test_a_reconnect_says_what_is_there_but_not_what_was_refused() -> None:
    session = opened()
    take(session, answer(CDS, "n1", "a", "b"))
    take(session, answer(CDS, "n2", "b", version="2"), {"b": "no good"})
    session.want(EDS, ["a"])
    take(session, answer(EDS, "n3", "a"))
    session.close()
    assert session.open() == (
        Request(CDS, initial_versions=(("a", "1"), ("b", "1"))),
        Request(EDS, subscribe=("a",), initial_versions=(("a", "1"),)),
        Request(LDS),
    )


def test_what_is_applied_too_late_for_its_stream_is_not_confirmed() -> None:
    session = opened()
    update, _ = session.receive(answer(CDS, "n1", "a"))
    session.close()
    session.open()
    assert update is not None
    assert session.applied(update, {}) == ()
    assert session.versions(CDS) == {}


def test_removal_forgets_the_version() -> None:
    session = opened()
    take(session, answer(CDS, "n1", "a", "b"))
    take(session, answer(CDS, "n2", removed=("a",)))
    assert session.versions(CDS) == {"b": "1"}


def test_names_that_are_no_longer_wanted_do_not_come_back_by_an_old_answer() -> None:
    session = opened()
    session.want(EDS, ["a", "b"])
    update, _ = session.receive(answer(EDS, "n1", "a", "b"))
    session.want(EDS, ["a"])
    assert update is not None
    session.applied(update, {})
    assert session.versions(EDS) == {"a": "1"}
    late, _ = session.receive(answer(EDS, "n2", "b"))
    assert late is not None
    assert late.changed == ()


def test_a_type_that_was_not_asked_for_is_refused() -> None:
    session = opened()
    for url in (RDS, "type.googleapis.com/x.Y"):
        update, (request,) = session.receive(answer(url, "n", "a"))
        assert update is None
        assert request.nonce == "n"
        assert "not subscribed" in (request.error or "")


@pytest.mark.parametrize(
    ("resources", "removed", "name", "reason"),
    [
        ([res(CDS, "a"), res(CDS, "a")], (), "a", "twice"),
        ([res(CDS, "a")], ("a",), "a", "changed and removed"),
        ([res(LDS, "a")], (), "a", "not a type.googleapis.com/envoy.config.cluster"),
        ([res(CDS, "")], (), "(unnamed)", "no name"),
    ],
)
def test_what_the_protocol_forbids_is_refused_by_name(
    resources: list[Resource], removed: tuple[str, ...], name: str, reason: str
) -> None:
    session = opened()
    update, _ = session.receive(Response(CDS, "n", (*resources, res(CDS, "good")), removed))
    assert update is not None
    assert [resource.name for resource in update.changed] == ["good"]
    (request,) = session.applied(update, {})
    assert f"{name}: " in (request.error or "")
    assert reason in (request.error or "")
    assert session.versions(CDS) == {"good": "1"}


def test_a_heartbeat_changes_nothing() -> None:
    session = opened()
    update, _ = session.receive(Response(CDS, "n", (res(CDS, "a", body=None),)))
    assert update is not None
    assert update.changed == ()


def test_a_successor_asks_for_the_same() -> None:
    session = opened()
    take(session, answer(CDS, "n1", "a"))
    session.want(EDS, ["a"])
    other = session.successor()
    session.close()
    assert other.open() == session.open()
    assert other.stream == 1


def test_wildcard_types_have_no_names() -> None:
    with pytest.raises(KeyError):
        opened().want(CDS, ["a"])
