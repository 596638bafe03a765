"""State of the world, as conversations. docs/xds.md names the rule that each holds."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.snapshot.urls import LISTENER, SECRET
from controlplane.xds.events import Acked, Nacked, ProtocolError, Query, Stale
from controlplane.xds.session import Limits
from controlplane.xds.sotw import SotwSession
from tests.support.xds import Conversation, FakeView, Said, cluster, endpoints, listener, routes, snapshot
from underpass.api import envoy


def shop(*extra: object) -> FakeView:
    return FakeView(
        snapshot(
            cluster("a"),
            cluster("b"),
            endpoints("a", 1),
            endpoints("b", 2),
            listener("l", "80"),
            routes("80", "a", "b"),
        )
    )


def talk(view: FakeView | None = None, **options: Any) -> Conversation:
    return Conversation(view or shop(), delta=False, **options)


def heard(said: Said | None) -> Said:
    assert said is not None
    return said


def test_wildcard_gets_everything_and_an_ack_gets_nothing() -> None:
    c = talk()
    c.ask("C")
    said = heard(c.hear())
    assert said.brief == ("C", ["a", "b"], [])
    events = c.ask("C", nonce=said.nonce, version=said.version)
    assert events == [Acked(c.session.status()[0].type_url, said.nonce, said.version)]
    assert c.hear() is None


def test_first_wildcard_answer_may_be_empty_but_comes() -> None:
    c = talk(FakeView(snapshot()))
    c.ask("C")
    assert heard(c.hear()).brief == ("C", [], [])
    assert c.hear() is None


def test_named_only_type_without_names_asks_for_nothing() -> None:
    c = talk()
    c.ask("E")
    assert c.hear() is None


def test_star_on_a_named_type_means_all() -> None:
    c = talk()
    c.ask("E", ["*"])
    assert heard(c.hear()).names == ["a", "b"]


def test_names_given_once_make_an_empty_list_mean_none() -> None:
    c = talk()
    c.ask("C", ["a"])
    first = heard(c.hear())
    assert first.names == ["a"]
    c.ask("C", [], nonce=first.nonce, version=first.version)
    assert c.hear() is None
    c.change(FakeView(snapshot(cluster("a", 2))))
    assert c.hear() is None, "an unsubscribed client is told nothing"


def test_new_names_are_answered_although_no_content_changed() -> None:
    c = talk()
    c.ask("E", ["a"])
    first = heard(c.hear())
    c.ask("E", ["a", "b"], nonce=first.nonce, version=first.version)
    assert heard(c.hear()).names == ["b"], "EDS answers may be partial: only the new name"


def test_a_missing_name_is_remembered_and_answered_when_it_appears() -> None:
    c = talk()
    c.ask("C", ["later"])
    first = heard(c.hear())
    assert first.names == [], "CDS is full state: an answer without it says that it does not exist"
    c.ack(first, ["later"])
    c.change(FakeView(snapshot(cluster("later"))))
    assert heard(c.hear()).names == ["later"]


def test_unknown_endpoint_and_route_names_are_answered_with_empty_ones() -> None:
    c = talk()
    c.ask("E", ["nowhere"])
    assert heard(c.hear()).names == ["nowhere"]
    c.ask("R", ["nowhere"])
    assert heard(c.hear()).names == ["nowhere"]
    assert c.hear() is None


def test_stale_nonce_is_ignored_even_for_the_subscription() -> None:
    c = talk()
    c.ask("E", ["a"])
    first = heard(c.hear())
    c.change(FakeView(snapshot(endpoints("a", 9), endpoints("b", 2))))
    second = heard(c.hear())
    events = c.ask("E", ["a", "b"], nonce=first.nonce, version=first.version)
    assert Stale(c.session.status()[0].type_url, first.nonce) in events
    assert c.hear() is None
    c.ask("E", ["a", "b"], nonce=second.nonce, version=second.version)
    assert heard(c.hear()).names == ["b"]


def test_first_request_may_carry_a_nonce_of_another_stream() -> None:
    """istioctl sends the time as nonce; a reconnecting client may keep its old one."""
    c = talk()
    c.ask("C", nonce="2026-08-27 10:00:00.000000000 +0000 UTC")
    assert heard(c.hear()).names == ["a", "b"]


def test_reconnect_with_version_and_without_nonce_is_answered() -> None:
    c = talk()
    c.ask("C", version=shop().snapshot["type.googleapis.com/envoy.config.cluster.v3.Cluster"].version)
    assert heard(c.hear()).names == ["a", "b"]


def test_versions_are_the_contents_not_the_streams() -> None:
    a, b = talk(), talk()
    a.ask("C")
    b.ask("C")
    first, other = heard(a.hear()), heard(b.hear())
    assert first.version == other.version
    a.change(FakeView(snapshot(cluster("a", 5), cluster("b"))))
    assert heard(a.hear()).version != first.version
    a.change(shop())
    assert heard(a.hear()).version == first.version


def test_request_repeated_before_the_answer_came_is_answered_again() -> None:
    c = talk()
    c.ask("E", ["a"])
    heard(c.hear())
    c.ask("E", ["a", "b"])  # sent before the client saw the answer: no nonce yet
    assert heard(c.hear()).names == ["a", "b"]


def test_an_ack_without_nonce_does_not_loop() -> None:
    c = talk()
    c.ask("C")
    said = heard(c.hear())
    c.ask("C", version=said.version)
    assert c.hear() is None


def test_nack_is_recorded_not_answered_and_the_next_change_is_sent() -> None:
    c = talk()
    c.ask("C")
    said = heard(c.hear())
    [nack] = [e for e in c.ask("C", nonce=said.nonce, error="ring hash min > max") if isinstance(e, Nacked)]
    assert nack.message == "ring hash min > max"
    assert set(nack.names) == {"a", "b"}
    assert c.session.status()[0].state == "ERROR"
    assert c.hear() is None
    c.ask("E", ["a"])
    assert heard(c.hear()).names == ["a"], "another type goes on"
    c.change(FakeView(snapshot(cluster("a", 3), cluster("b"))))
    again = heard(c.hear())
    assert again.names == ["a", "b"]
    c.ack(again)
    assert c.session.status()[0].error == ""


def test_nack_without_a_nonce_does_not_loop() -> None:
    c = talk()
    c.ask("C")
    heard(c.hear())
    c.ask("C", error="no nonce")
    assert c.hear() is None
    assert c.session.status()[0].state == "ERROR"


def test_refused_endpoints_come_again_with_the_next_change() -> None:
    c = talk()
    c.ask("E", ["a", "b"])
    said = heard(c.hear())
    c.ask("E", ["a", "b"], nonce=said.nonce, error="bad")
    assert c.hear() is None
    c.change(FakeView(snapshot(endpoints("a", 7), endpoints("b", 2))))
    assert heard(c.hear()).names == ["a"]
    assert heard(c.hear()).names == ["b"], "whether the client kept b is unknown; apart, so that it cannot harm a"


def test_endpoints_follow_their_cluster_even_unchanged() -> None:
    c = talk()
    c.ask("C")
    clusters = heard(c.hear())
    c.ask("E", ["a", "b"])
    first = heard(c.hear())
    c.ack(clusters)
    c.ack(first, ["a", "b"])
    c.change(FakeView(snapshot(cluster("a", 9), cluster("b"), endpoints("a", 1), endpoints("b", 2))))
    assert [said.brief for said in c.hear_all()] == [("C", ["a", "b"], []), ("E", ["a"], [])]


def test_push_order_and_removals_last() -> None:
    c = talk()
    for letter, names in (("R", ["80"]), ("L", []), ("E", ["a", "b"]), ("C", [])):
        c.ask(letter, names)
    said = c.hear_all()
    assert [s.type for s in said] == ["C", "E", "L", "R"]
    for s in said:
        c.ack(s, {"R": ["80"], "E": ["a", "b"]}.get(s.type, []))
    # b goes, c comes, the route moves from b to c
    c.change(
        FakeView(
            snapshot(
                cluster("a"),
                cluster("c"),
                endpoints("a", 1),
                endpoints("c", 3),
                listener("l", "80"),
                routes("80", "a", "c"),
            )
        )
    )
    made = heard(c.hear())
    assert made.brief == ("C", ["a", "b", "c"], []), "the old cluster stays until the routes have moved"
    c.ask("E", ["a", "b", "c"], nonce=said[1].nonce, version=said[1].version)
    moved = c.hear_all()
    assert [s.brief for s in moved] == [("E", ["c"], [])], "the new cluster is not warm yet: no route to it"
    assert c.session.holding
    c.ack(made)
    moved += c.hear_all()
    assert moved[1].brief == ("R", ["80"], [])
    assert c.session.blocked
    assert not c.session.holding
    assert c.hear() is None
    c.ack(moved[0], ["a", "b", "c"])
    assert c.hear() is None
    c.ack(moved[1], ["80"])
    assert [s.brief for s in c.hear_all()] == [("E", ["b"], []), ("C", ["a", "c"], [])]
    assert not c.session.blocked


def test_a_client_that_never_answers_gets_removals_after_its_grace() -> None:
    c = talk()
    c.ask("C")
    heard(c.hear())
    c.change(FakeView(snapshot(cluster("a"))))
    assert c.hear() is None
    assert c.session.blocked
    c.session.release()
    assert heard(c.hear()).names == ["a"]


def test_full_state_omits_what_was_removed() -> None:
    c = talk()
    c.ask("C")
    c.ack(heard(c.hear()))
    c.change(FakeView(snapshot()))
    assert heard(c.hear()).brief == ("C", [], [])


def test_latest_content_wins_over_what_was_not_written_yet() -> None:
    c = talk()
    c.ask("C")
    first = heard(c.hear())
    c.ack(first)
    c.change(FakeView(snapshot(cluster("a", 2), cluster("b"))))
    c.change(FakeView(snapshot(cluster("a", 3), cluster("b"))))
    c.change(shop())
    assert c.hear() is None, "back where the client is: nothing to say"


def test_names_outside_the_snapshot_are_looked_up_and_followed() -> None:
    def view(port: int) -> FakeView:
        return FakeView(snapshot(), {(LISTENER, "shop:80"): listener("shop:80", "r", port)})

    c = talk(view(1))
    c.ask("L", ["shop:80"])
    first = heard(c.hear())
    assert first.names == ["shop:80"]
    c.ack(first, ["shop:80"])
    c.change(view(1))
    assert c.hear() is None
    c.change(view(2))
    assert heard(c.hear()).names == ["shop:80"]


def test_unknown_type_does_not_end_the_stream() -> None:
    c = talk()
    c.ask("type.googleapis.com/no.such.Type", ["x"])
    assert c.hear() is None
    c.ask("C")
    assert heard(c.hear()).names == ["a", "b"]


def test_requests_before_the_view_is_known_are_answered_with_it() -> None:
    c = Conversation(None, delta=False)
    c.ask("C")
    c.ask("E", ["a"])
    assert c.hear() is None
    c.change(shop())
    assert [said.brief for said in c.hear_all()] == [("C", ["a", "b"], []), ("E", ["a"], [])]


def test_query_is_answered_once_and_its_ack_is_silent() -> None:
    c = talk(is_query=lambda url: url.startswith("istio.io/debug"))
    events = c.ask("istio.io/debug/syncz", nonce="2026-08-27 10:00:00")
    assert events == [Query("istio.io/debug/syncz", ())]
    query = events[0]
    assert isinstance(query, Query)
    c.session.answer(query, [("istio.io/debug", b"{}")])
    response = c.session.poll()
    assert response is not None
    message = envoy.DiscoveryResponse.FromString(response.data)
    assert [(a.type_url, a.value) for a in message.resources] == [("istio.io/debug", b"{}")]
    assert c.ask("istio.io/debug/syncz", nonce=response.nonce) == []
    assert c.hear() is None


def test_identifier_is_in_every_response() -> None:
    c = talk(identifier="cp-1")
    c.ask("C")
    response = c.session.poll()
    assert response is not None
    assert envoy.DiscoveryResponse.FromString(response.data).control_plane.identifier == "cp-1"


def test_single_type_service_needs_no_type_url_and_refuses_others() -> None:
    session = SotwSession("s", type_url=LISTENER)
    session.set_view(shop())
    request = envoy.DiscoveryRequest()
    request.node.id = "n"
    session.receive(request.SerializeToString())
    assert session.poll() is not None
    with pytest.raises(ProtocolError, match="serves"):
        session.receive(envoy.DiscoveryRequest(type_url=SECRET).SerializeToString())


@pytest.mark.parametrize(
    ("data", "status", "what"),
    [
        (b"\xff\xff\xff", "INVALID_ARGUMENT", "not a discovery request"),
        (b"", "INVALID_ARGUMENT", "must carry the node"),
    ],
)
def test_garbage_ends_the_stream_with_a_reason(data: bytes, status: str, what: str) -> None:
    session = SotwSession("s")
    with pytest.raises(ProtocolError, match=what) as caught:
        session.receive(data)
    assert caught.value.status == status


def test_limits_are_named() -> None:
    c = talk(limits=Limits(names=3, name_bytes=10, types=2))
    with pytest.raises(ProtocolError, match="4 names"):
        c.ask("E", list("abcd"))
    with pytest.raises(ProtocolError, match="11 characters"):
        talk(limits=Limits(name_bytes=10)).ask("E", ["x" * 11])
    c = talk(limits=Limits(types=2))
    c.ask("C")
    c.ask("E", ["a"])
    with pytest.raises(ProtocolError, match="more than 2 types"):
        c.ask("L")


def test_empty_names_are_ignored() -> None:
    c = talk()
    c.ask("E", ["", "a"])
    assert heard(c.hear()).names == ["a"]


def test_large_partial_answers_are_split() -> None:
    many = [endpoints(f"c{i:03}", *range(1, 20)) for i in range(100)]
    c = talk(FakeView(snapshot(*many)), limits=Limits(response_bytes=5000))
    c.ask("E", [r.name for r in many])
    said = c.hear_all()
    assert len(said) > 5
    assert sorted(name for s in said for name in s.names) == [r.name for r in many]
