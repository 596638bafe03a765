"""Following an etcd against a model of one: whatever is lost, repeated, compacted or put back, both end up equal.

And who leads, against a model of leases: with clocks that run unequally and answers that take their time, never two at
once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.store.election import MARGIN, TTL, Election
from controlplane.store.follow import CONFIRM_AFTER, Event, Follower, List, Listing, Response, Watch
from controlplane.store.layout import Entry

KEYS = ("a", "b", "c")


@dataclass
class Server:
    """etcd's rules: one revision per transaction, watches in whole revisions, nothing before the compaction."""

    cluster: int = 1
    revision: int = 1
    compacted: int = 0
    log: list[list[Event]] = field(default_factory=lambda: [[], []])
    now: dict[str, Entry] = field(default_factory=dict)
    #: What was there at each revision.
    states: dict[int, dict[str, Entry]] = field(default_factory=lambda: {1: {}})

    def transact(self, keys: list[str], value: bytes | None) -> None:
        changes = [key for key in keys if value is not None or key in self.now]
        if not changes:
            return
        self.revision += 1
        events = []
        for key in changes:
            if value is None:
                del self.now[key]
                events.append(Event(key, self.revision, None))
            else:
                created = self.now[key].created if key in self.now else self.revision
                self.now[key] = Entry(key, value, created, self.revision)
                events.append(Event(key, self.revision, self.now[key]))
        self.log.append(events)
        self.states[self.revision] = dict(self.now)

    def listing(self) -> Listing:
        return Listing(self.cluster, self.revision, dict(self.now))


@dataclass
class Stream:
    """One watch: what it will send next."""

    server: Server
    at: int
    begun: bool = False

    def next(self, most: int, repeat: int) -> Response | None:
        """The next response of at most so many revisions; some that were sent may come again."""
        server = self.server
        if not self.begun:
            self.begun = True
            return Response(server.cluster, server.revision, created=True)
        if self.at <= server.compacted:
            return Response(server.cluster, server.revision, canceled=True, compacted=server.compacted)
        begin = max(self.at - repeat, server.compacted + 1, 2)
        end = min(self.at + most, server.revision + 1)
        events = [event for events in server.log[begin:end] for event in events]
        if end <= self.at:
            # Nothing is owed: a notification of progress, whose revision may be relied on.
            return Response(server.cluster, server.revision) if repeat == 0 else None
        self.at = end
        return Response(server.cluster, server.revision, events)


class World:
    def __init__(self) -> None:
        self.server = Server()
        self.follower = Follower()
        self.stream: Stream | None = None
        self.published: dict[str, Entry] | None = None
        self.waited = 0.0

    def told(self, changed: bool) -> None:
        """Who follows the follower knows its entries only from the steps that said they were new."""
        if changed:
            self.published = dict(self.follower.entries)

    def step(self, most: int = 100, repeat: int = 0) -> None:
        before, command = self.follower.revision, self.follower.command
        if isinstance(command, List):
            self.stream = None
            self.waited = command.after
            self.told(self.follower.listed(self.server.listing()))
        else:
            assert isinstance(command, Watch)
            if self.stream is None:
                assert command.revision == before + 1, "nothing may be left out"
                self.stream = Stream(self.server, command.revision)
            response = self.stream.next(most, repeat)
            if response is not None:
                self.told(self.follower.watched(response))
        if isinstance(self.follower.command, List):
            self.stream = None

    def lose(self) -> None:
        self.stream = None
        self.follower.lost()

    def settle(self) -> None:
        for _ in range(12):
            self.step()

    def check(self) -> None:
        assert dict(self.follower.entries) == self.server.now
        assert self.published == self.server.now
        assert self.follower.revision == self.server.revision
        assert isinstance(self.follower.command, Watch)


transactions = st.tuples(
    st.just("transact"), st.lists(st.sampled_from(KEYS), min_size=1, unique=True), st.none() | st.binary(max_size=2)
)
steps = st.tuples(st.just("step"), st.integers(1, 3), st.integers(0, 3))
actions = st.one_of(transactions, steps, st.sampled_from([("lose",), ("compact",)]))


def play(world: World, script: list[tuple[object, ...]]) -> None:
    for name, *arguments in script:
        if name == "transact":
            world.server.transact(*arguments)  # type: ignore[arg-type]  # as drawn
        elif name == "step":
            world.step(*arguments)  # type: ignore[arg-type]  # as drawn
            if world.follower.synced:  # never half a transaction, never anything older than its revision
                assert world.follower.entries == world.server.states[world.follower.revision]
        elif name == "lose":
            world.lose()
        elif name == "compact":
            world.server.compacted = world.server.revision - 1


@settings(max_examples=400, deadline=None)
@given(st.lists(actions, max_size=40))
def test_what_is_followed_equals_what_is_there(script: list[tuple[object, ...]]) -> None:
    world = World()
    play(world, script)
    revision = world.follower.revision
    world.settle()
    world.check()
    assert world.follower.revision >= revision


@settings(max_examples=300, deadline=None)
@given(st.lists(actions, max_size=15), st.lists(actions, max_size=15), st.booleans())
def test_a_store_that_was_put_back_is_believed_at_the_second_look(
    before: list[tuple[object, ...]], after: list[tuple[object, ...]], other_cluster: bool
) -> None:
    world = World()
    play(world, before)
    world.settle()
    known, revision = dict(world.follower.entries), world.follower.revision
    world.server = Server(cluster=2 if other_cluster else 1)
    world.server.transact(["a"], b"new")
    world.lose()
    surprising = other_cluster or world.server.revision < revision
    if surprising:
        world.step()  # the watch says that it is another store, or an older one
        assert isinstance(world.follower.command, List)
        world.step()
        assert dict(world.follower.entries) == known, "one look is not enough"
        assert world.follower.command == List(CONFIRM_AFTER)
        world.settle()
        play(world, after)
        world.settle()
        world.check()


@settings(max_examples=200, deadline=None)
@given(st.lists(actions, max_size=15), st.lists(actions, max_size=15))
def test_a_replica_that_begins_with_a_copy_ends_where_the_store_is(
    before: list[tuple[object, ...]], after: list[tuple[object, ...]]
) -> None:
    world = World()
    play(world, before)
    world.settle()
    copy = world.server.listing()
    play(world, after)
    world.follower, world.stream = Follower(), None
    assert world.follower.seed(copy)
    assert not world.follower.seed(copy), "only in the beginning"
    world.told(True)
    world.settle()
    world.check()


def test_a_list_that_is_suddenly_empty_is_made_twice() -> None:
    world = World()
    world.server.transact(["a", "b"], b"x")
    world.settle()
    world.server.transact(["a", "b"], None)
    world.server.compacted = world.server.revision - 1
    world.lose()
    world.server.compacted = world.server.revision
    world.step()
    world.step()
    assert isinstance(world.follower.command, List), "compacted"
    world.step()
    assert set(world.follower.entries) == {"a", "b"}
    world.lose()
    assert world.follower.command == List(CONFIRM_AFTER), "a lost connection does not shorten the wait"
    world.step()
    assert world.follower.entries == {}
    assert world.waited == CONFIRM_AFTER
    world.check()


# --- who leads --------------------------------------------------------------------------------------------------------


class Leases:
    """etcd's lease keeper and one key, on true time."""

    def __init__(self) -> None:
        self.ends: dict[int, float] = {}
        self.owner: tuple[str, int] | None = None
        self._last = 0

    def at(self, now: float) -> None:
        if self.owner is not None and self.ends.get(self.owner[1], 0.0) <= now:
            self.owner = None

    def grant(self, now: float) -> int:
        self._last += 1
        self.ends[self._last] = now + TTL
        return self._last

    def keep(self, now: float, lease: int) -> float:
        if self.ends.get(lease, 0.0) <= now:
            return 0.0
        self.ends[lease] = now + TTL
        return TTL

    def campaign(self, now: float, name: str, lease: int) -> tuple[str, int]:
        self.at(now)
        if self.owner is None and self.ends.get(lease, 0.0) > now:
            self.owner = (name, lease)
        return self.owner or ("", 0)


pauses = st.floats(0.0, TTL, allow_nan=False)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(-0.05, 0.05), min_size=2, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), pauses, pauses, pauses), max_size=60),
)
def test_never_two_lead(drifts: list[float], turns: list[tuple[int, float, float, float]]) -> None:
    """``drifts``: how much faster each clock runs; a turn: who, and how long it thinks, asks and waits for answers."""
    assert MARGIN / TTL > 0.1, "two clocks that differ by ten percent are covered"
    leases = Leases()
    replicas = [Election(str(number)) for number in range(len(drifts))]
    now = 0.0
    led = 0

    def clock(number: int) -> float:
        return (1 + drifts[number]) * now + 1000.0 * number

    def check() -> None:
        assert sum(replica.leads(clock(number)) for number, replica in enumerate(replicas)) <= 1

    for chosen, think, there, back in turns:
        number = chosen % len(replicas)
        replica = replicas[number]
        now += think
        check()
        asked = clock(number)
        if not replica.expired(asked):
            now += there
            ttl = leases.keep(now, replica.lease)
            check()
            now += back
            replica.kept(asked, ttl)
        if replica.expired(clock(number)):
            replica.dropped()
            asked = clock(number)
            lease = leases.grant(now)
            now += back
            replica.granted(lease, asked, TTL)
        check()
        owner = leases.campaign(now, replica.name, replica.lease)
        now += back / 4
        replica.campaigned(*owner)
        check()
        led += replica.leads(clock(number))


def test_one_leads_and_the_next_takes_over_when_it_is_not_heard_of() -> None:
    leases = Leases()
    one, two = Election("one"), Election("two")
    for replica in (one, two):
        replica.granted(leases.grant(0.0), 0.0, TTL)
        replica.campaigned(*leases.campaign(0.0, replica.name, replica.lease))
    assert (one.leads(0.0), two.leads(0.0), two.leader) == (True, False, "one")
    for now in range(1, 20):  # two goes on, one is not heard of
        two.kept(now, leases.keep(now, two.lease))
        two.campaigned(*leases.campaign(now, "two", two.lease))
        assert not (one.leads(now) and two.leads(now))
    assert two.leads(19.0)
    assert one.expired(19.0)
    one.kept(19.0, leases.keep(19.0, one.lease))
    assert one.lease == 0
