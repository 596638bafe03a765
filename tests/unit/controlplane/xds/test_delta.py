"""Incremental xDS, as conversations. docs/xds.md names the rule that each holds."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.snapshot import Resource, encode
from controlplane.snapshot.resource import from_bytes
from controlplane.snapshot.urls import ADDRESS, CLUSTER
from controlplane.xds.events import Acked, Nacked, ProtocolError, Stale
from controlplane.xds.session import KEPT_BYTES, Limits
from tests.support.xds import Conversation, FakeView, Said, cluster, endpoints, listener, routes, snapshot
from underpass.api import envoy


def shop() -> FakeView:
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
    return Conversation(view or shop(), delta=True, **options)


def heard(said: Said | None) -> Said:
    assert said is not None
    return said


def test_wildcard_gets_everything_and_an_ack_gets_nothing() -> None:
    c = talk()
    c.ask("C")
    said = heard(c.hear())
    assert said.brief == ("C", ["a", "b"], [])
    assert c.ask("C", nonce=said.nonce) == [Acked(CLUSTER, said.nonce, said.version)]
    assert c.hear() is None


@pytest.mark.parametrize("names", [[], ["*"]])
def test_first_wildcard_answer_may_be_empty_but_comes(names: list[str]) -> None:
    c = talk(FakeView(snapshot()))
    c.ask(ADDRESS, names)
    assert heard(c.hear()).brief == (ADDRESS, [], [])
    assert c.hear() is None


def test_star_subscribed_and_unsubscribed_at_once_is_on_demand() -> None:
    c = talk()
    c.ask("C", ["*"], unsubscribe=["*"])
    assert heard(c.hear()).brief == ("C", [], []), "ztunnel is not ready before it has heard something"
    assert c.hear() is None
    c.change(FakeView(snapshot(cluster("a", 2))))
    assert c.hear() is None
    c.ask("C", ["a"])
    assert heard(c.hear()).names == ["a"]


def test_only_what_changed_is_sent() -> None:
    c = talk()
    c.ask("C")
    c.ack(heard(c.hear()))
    c.change(FakeView(snapshot(cluster("a"), cluster("b", 7))))
    assert heard(c.hear()).brief == ("C", ["b"], [])


def test_removed_names_are_exactly_those_that_vanished() -> None:
    c = talk()
    c.ask("C")
    c.ack(heard(c.hear()))
    c.change(FakeView(snapshot(cluster("a"))))
    said = heard(c.hear())
    assert said.brief == ("C", [], ["b"])
    c.ack(said)
    c.change(FakeView(snapshot(cluster("a"))))
    assert c.hear() is None


def test_what_came_and_went_before_it_was_written_is_not_mentioned() -> None:
    c = talk()
    c.ask("C")
    c.ack(heard(c.hear()))
    c.change(FakeView(snapshot(cluster("a"), cluster("b"), cluster("x"))))
    c.change(shop())
    assert c.hear() is None


def test_resubscribing_sends_again_at_the_same_version() -> None:
    c = talk()
    c.ask("E", ["a"])
    first = heard(c.hear())
    c.ack(first)
    c.ask("E", ["a"])
    assert heard(c.hear()).resources == first.resources


def test_missing_name_is_answered_as_removed_and_delivered_when_created() -> None:
    c = talk()
    c.ask("E", ["later"])
    said = heard(c.hear())
    assert said.brief == ("E", [], ["later"])
    c.ack(said)
    c.change(FakeView(snapshot(endpoints("later", 1))))
    assert heard(c.hear()).brief == ("E", ["later"], [])


def test_phantom_unsubscribe_is_ignored() -> None:
    c = talk()
    c.ask("C")
    c.ack(heard(c.hear()))
    c.ask("C", unsubscribe=["never", "a"])
    assert c.hear() is None, "a was never subscribed by name, the wildcard covers it"
    c.change(FakeView(snapshot(cluster("a", 2), cluster("b"))))
    assert heard(c.hear()).names == ["a"]


def test_unsubscribe_alone_is_silent_and_final() -> None:
    c = talk()
    c.ask("E", ["a", "b"])
    c.ack(heard(c.hear()))
    c.ask("E", unsubscribe=["a"])
    assert c.hear() is None
    c.change(FakeView(snapshot(endpoints("a", 5), endpoints("b", 5))))
    assert heard(c.hear()).names == ["b"]


def test_unsubscribing_a_name_under_a_wildcard_says_whether_the_client_keeps_it() -> None:
    c = talk(FakeView(shop().snapshot, {(CLUSTER, "extra"): cluster("extra")}))
    c.ask("C")
    c.ack(heard(c.hear()))
    c.ask("C", ["a", "extra"])
    c.ack(heard(c.hear()))
    c.ask("C", unsubscribe=["a"])
    assert heard(c.hear()).brief == ("C", ["a"], [])
    c.ask("C", unsubscribe=["extra"])
    assert heard(c.hear()).brief == ("C", [], ["extra"])


def test_leaving_the_wildcard_keeps_the_names() -> None:
    c = talk()
    c.ask("C", ["*", "a"])
    c.ack(heard(c.hear()))
    c.ask("C", unsubscribe=["*"])
    assert c.hear() is None
    c.change(FakeView(snapshot(cluster("a", 2), cluster("b", 2))))
    assert heard(c.hear()).names == ["a"]


def test_names_on_top_of_the_legacy_wildcard_keep_it() -> None:
    """An Envoy with on-demand clusters does this."""
    c = talk()
    c.ask("C")
    c.ack(heard(c.hear()))
    c.ask("C", ["ondemand"])
    assert heard(c.hear()).brief == ("C", [], ["ondemand"])
    c.change(FakeView(snapshot(cluster("a"), cluster("b", 2))))
    assert heard(c.hear()).names == ["b"]


def test_entering_the_wildcard_later_tells_everything() -> None:
    c = talk()
    c.ask("C", ["a"])
    c.ack(heard(c.hear()))
    c.ask("C", ["*"])
    assert heard(c.hear()).names == ["a", "b"]


def test_reconnect_sends_only_the_difference() -> None:
    versions = {name: r.version for name, r in shop().snapshot[CLUSTER].items()}
    c = talk()
    c.ask("C", has={**versions, "b": "old", "gone": "1"})
    assert [said.brief for said in c.hear_all()] == [("C", ["b"], [])]
    assert c.session.blocked, "the removal waits until the changed ones are answered"
    c.session.release()
    assert [said.brief for said in c.hear_all()] == [("C", [], ["gone"])]


def test_reconnect_with_everything_current_is_told_so_once() -> None:
    versions = {name: r.version for name, r in shop().snapshot[CLUSTER].items()}
    c = talk()
    c.ask("C", has=versions)
    assert [said.brief for said in c.hear_all()] == [("C", [], [])]


def test_reconnect_by_name() -> None:
    c = talk()
    c.ask("E", ["a", "b", "gone"], has={"a": endpoints("a", 1).version, "b": "old", "gone": "1"})
    assert heard(c.hear()).brief == ("E", ["b"], [])
    c.session.release()
    assert heard(c.hear()).brief == ("E", [], ["gone"])


def test_initial_versions_count_only_in_the_first_request_of_a_type() -> None:
    c = talk()
    c.ask("E", ["a"])
    c.ack(heard(c.hear()))
    c.ask("E", ["b"], has={"b": endpoints("b", 2).version})
    assert heard(c.hear()).names == ["b"]


def test_stale_nonce_still_changes_the_subscription() -> None:
    c = talk()
    c.ask("E", ["a"])
    heard(c.hear())
    events = c.ask("E", ["b"], nonce="of-another-life")
    assert Stale(c.session.status()[0].type_url, "of-another-life") in events
    assert heard(c.hear()).names == ["b"]


def test_several_responses_may_be_in_flight() -> None:
    c = talk()
    c.ask("C")
    first = heard(c.hear())
    c.change(FakeView(snapshot(cluster("a", 2), cluster("b"))))
    second = heard(c.hear())
    assert c.ask("C", nonce=first.nonce) == [Acked(CLUSTER, first.nonce, first.version)]
    assert c.session.status()[0].state == "STALE"
    assert c.ask("C", nonce=second.nonce) == [Acked(CLUSTER, second.nonce, second.version)]
    assert c.session.status()[0].state == "SYNCED"


def test_nack_leaves_the_content_in_doubt_until_the_next_change() -> None:
    c = talk()
    c.ask("C")
    said = heard(c.hear())
    [nack] = [e for e in c.ask("C", nonce=said.nonce, error="a: no") if isinstance(e, Nacked)]
    assert nack.names == ("a", "b")
    assert c.hear() is None
    c.change(FakeView(snapshot(cluster("a", 2), cluster("b"))))
    assert heard(c.hear()).names == ["a"]
    assert heard(c.hear()).names == ["b"], "the client may have refused b as well; apart, so that it cannot harm a"
    assert c.hear() is None


def test_nack_of_an_unknown_nonce_is_recorded() -> None:
    c = talk()
    c.ask("C")
    heard(c.hear())
    c.ask("C", nonce="unknown", error="whatever")
    assert c.session.status()[0].state == "ERROR"
    assert c.hear() is None


def test_removed_resource_that_was_in_doubt_is_removed() -> None:
    c = talk()
    c.ask("C")
    said = heard(c.hear())
    c.ask("C", nonce=said.nonce, error="b: no")
    c.change(FakeView(snapshot(cluster("a"))))
    again = heard(c.hear())
    assert again.brief == ("C", ["a"], [])
    c.ack(again)
    assert heard(c.hear()).brief == ("C", [], ["b"])


def test_endpoints_follow_their_cluster_even_unchanged() -> None:
    c = talk()
    c.ask("C")
    c.ask("E", ["a", "b"])
    for said in c.hear_all():
        c.ack(said)
    c.change(FakeView(snapshot(cluster("a", 9), cluster("b"), endpoints("a", 1), endpoints("b", 2))))
    assert [said.brief for said in c.hear_all()] == [("C", ["a"], []), ("E", ["a"], [])]


@pytest.mark.parametrize("endpoints_first", [True, False])
def test_reconnect_resends_endpoints_of_a_changed_cluster_in_either_order(endpoints_first: bool) -> None:
    c = talk()
    has = {"a": endpoints("a", 1).version, "b": endpoints("b", 2).version}
    if endpoints_first:
        c.ask("E", ["a", "b"], has=has)
        assert c.hear() is None
    c.ask("C", has={"a": "old", "b": cluster("b").version})
    clusters = heard(c.hear())
    assert clusters.names == ["a"]
    if not endpoints_first:
        assert c.hear() is None
        c.ask("E", ["a", "b"], has=has)
    assert heard(c.hear()).brief == ("E", ["a"], [])
    assert c.hear() is None


def test_push_order_and_removals_last() -> None:
    c = talk()
    for letter, names in (("R", ["80"]), ("L", []), ("E", ["a", "b"]), ("C", [])):
        c.ask(letter, names)
    said = c.hear_all()
    assert [s.type for s in said] == ["C", "E", "L", "R"]
    for s in said:
        c.ack(s)
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
    made = c.hear_all()
    assert [s.brief for s in made] == [("C", ["c"], [])], "no route to a cluster that is not warm yet"
    c.ask("E", ["c"])
    more = c.hear_all()
    assert [s.brief for s in more] == [("E", ["c"], [])]
    assert c.hear() is None
    assert c.session.holding
    c.ack(made[0])
    routed = c.hear_all()
    assert [s.brief for s in routed] == [("R", ["80"], [])]
    for s in [*more, *routed]:
        assert c.hear() is None, "the old cluster stays until every answer is in"
        c.ack(s)
    assert [s.brief for s in c.hear_all()] == [("E", [], ["b"]), ("C", [], ["b"])]


def test_removal_that_is_undone_while_it_waits_is_not_sent() -> None:
    c = talk()
    c.ask("C")
    heard(c.hear())
    c.change(FakeView(snapshot(cluster("a"))))
    assert c.hear() is None
    c.change(shop())
    c.session.release()
    assert c.hear() is None


def test_aliases_are_names() -> None:
    entry = from_bytes(ADDRESS, "ns/shop", b"\x0a\x00", aliases=("net/10.0.0.1",))
    changed = from_bytes(ADDRESS, "ns/shop", b"\x12\x00", aliases=("net/10.0.0.1",))
    c = talk(FakeView(snapshot(entry)))
    c.ask(ADDRESS, ["*"], unsubscribe=["*"])
    c.ask(ADDRESS, ["net/10.0.0.1"])
    response = c.session.poll()
    assert response is not None
    message = envoy.DeltaDiscoveryResponse.FromString(response.data)
    assert [(r.name, list(r.aliases)) for r in message.resources] == [("ns/shop", ["net/10.0.0.1"])]
    c.ask(ADDRESS, nonce=response.nonce)
    c.change(FakeView(snapshot(changed)))
    assert heard(c.hear()).names == ["ns/shop"]


def test_answers_are_split_below_the_clients_limit() -> None:
    many = [cluster(f"c{i:03}") for i in range(200)]
    c = talk(FakeView(snapshot(*many)), limits=Limits(response_bytes=2000))
    c.ask("C")
    said = c.hear_all()
    assert len(said) > 3
    assert sorted(name for s in said for name in s.names) == [r.name for r in many]


def test_one_resource_larger_than_the_limit_is_sent_alone() -> None:
    big = envoy.Cluster(name="big", alt_stat_name="x" * 5000)
    c = talk(
        FakeView(snapshot(cluster("a"), encode(CLUSTER, "big", big), cluster("z"))), limits=Limits(response_bytes=900)
    )
    c.ask("C")
    assert [s.names for s in c.hear_all()] == [["a"], ["big"], ["z"]]


def test_unknown_type_does_not_end_the_stream() -> None:
    c = talk()
    c.ask("type.googleapis.com/no.such.Type", ["x"])
    assert heard(c.hear()).removed == ("x",)
    c.ask("C")
    assert heard(c.hear()).names == ["a", "b"]


def test_total_of_names_is_limited() -> None:
    c = talk(limits=Limits(names=5))
    c.ask("E", list("abc"))
    with pytest.raises(ProtocolError, match="6 names on one stream"):
        c.ask("R", list("abc"))


def test_no_state_leaks_between_streams_of_one_node() -> None:
    one, two = talk(), talk()
    one.ask("C")
    heard(one.hear())
    two.ask("C")
    assert heard(two.hear()).names == ["a", "b"]


def test_routes_wait_for_new_clusters_but_not_for_ever_nor_for_changed_ones() -> None:
    def view(*clusters: str, timeout: int = 1) -> FakeView:
        return FakeView(snapshot(*(cluster(n, timeout) for n in clusters), routes("80", *clusters)))

    c = talk(view("a"))
    c.ask("C")
    c.ask("R", ["80"])
    first = c.hear_all()
    assert [said.type for said in first] == ["C", "R"], "a client without routes has no traffic to lose"
    for said in first:
        c.ack(said)
    c.change(view("a", "b"))
    assert [said.type for said in c.hear_all()] == ["C"]
    assert c.session.holding
    c.session.release()
    assert [said.type for said in c.hear_all()] == ["R"]
    c.change(view("a", "b", timeout=2))
    assert [said.type for said in c.hear_all()] == ["C"]
    assert not c.session.holding
    c.change(FakeView(snapshot(cluster("a", 3), cluster("b", 3), routes("80", "a"))))
    assert [said.type for said in c.hear_all()] == ["C", "R"], "clusters that the client has do not hold routes up"


def test_a_refused_cluster_does_not_hold_routes_up() -> None:
    c = talk()
    c.ask("C")
    c.ask("R", ["80"])
    for said in c.hear_all():
        c.ack(said)
    c.change(FakeView(snapshot(cluster("a"), cluster("b"), cluster("x"), routes("80", "a"))))
    said = heard(c.hear())
    assert c.hear() is None
    c.ask("C", nonce=said.nonce, error="x: no")
    assert [said.type for said in c.hear_all()] == ["R"]


def large_cluster() -> Resource:
    return encode(CLUSTER, "large", envoy.Cluster(name="large", alt_stat_name="x" * KEPT_BYTES))


def test_a_large_response_is_followed_by_one_that_says_nothing() -> None:
    """gRPC keeps a stream's last message: it should not be a route table, on thousands of streams."""
    view = FakeView(snapshot(large_cluster()))
    c = talk(view)
    c.ask("C")
    large = heard(c.hear())
    assert large.brief == ("C", ["large"], [])
    assert c.session.displacing
    nothing = heard(c.hear())
    assert nothing.brief == ("C", [], [])
    assert not c.session.displacing
    assert c.hear() is None, "it is not large itself"
    for said in (large, nothing):
        assert c.ask("C", nonce=said.nonce) == [Acked(CLUSTER, said.nonce, said.version)]
    assert c.session.settled
    c.ask("C", ["absent"])
    assert list(heard(c.hear()).removed) == ["absent"]
    assert c.hear() is None, "a small response needs none"


def test_news_displaces_a_large_response_as_well() -> None:
    view = FakeView(snapshot(large_cluster(), endpoints("a", 1)))
    c = talk(view)
    c.ask("C")
    c.ask("E", ["a"])
    assert heard(c.hear()).brief == ("C", ["large"], [])
    assert heard(c.hear()).brief == ("E", ["a"], [])
    assert c.hear() is None
