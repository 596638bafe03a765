"""Laws of the wire arithmetic: what is translated one way comes back the other way, and no switch loses a number."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nodeagent.abi.numbers import ResponseState, State
from tests.support.core_memory import (
    HOME_IN,
    HOME_OUT,
    INWARD,
    MASK,
    OUTWARD,
    OWNER_IN,
    OWNER_OUT,
    Conn,
    Shift,
    begin,
    come_home,
    follow,
    freeze,
    idle,
    leave_home,
    lend,
    shift,
)

pytestmark = pytest.mark.needs("core")

# The edges of sequence space are as likely as its middle.
NUMBER = st.one_of(
    st.integers(0, MASK),
    st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**31 + 1, MASK - 1, MASK]),
    st.integers(MASK - 99, MASK),
)
SCALE = st.integers(0, 14)


def conns(**fixed: int) -> st.SearchStrategy[Conn]:
    """A connection just established: S = oS, R = oR."""
    return st.builds(
        lambda s, r, t, off, rws, sws, wnd: Conn(
            S=s, oS=s, R=r, oR=r, T=t, tsoff=off, rws=rws, sws=sws, wnd=wnd, **fixed
        ),
        NUMBER, NUMBER, NUMBER, NUMBER, SCALE, SCALE, st.integers(0, 2**30),
    )  # fmt: skip


CLIENT, UPSTREAM = conns(state=State.AT_HOME), conns(state=State.FREE)
POINT = st.tuples(NUMBER, NUMBER, NUMBER)  # seq, ack, timestamp echo


def moved(x: Shift, seq: int, ack: int, tsv: int = 0, tse: int = 0) -> tuple[int, int, int, int]:
    """What up_packet_move() makes of a packet's numbers."""
    return (seq + x.seq) & MASK, (ack + x.ack) & MASK, (tsv + x.tsv) & MASK, (tse + x.tse) & MASK


@settings(deadline=None)
@given(c=CLIENT, u=UPSTREAM, at=POINT, tsv=NUMBER)
def test_the_first_packet_lands_where_the_wire_stands(c: Conn, u: Conn, at: tuple[int, int, int], tsv: int) -> None:
    seq, ack, te = at
    lend(u, c, seq, ack, te, 7)
    got = moved(shift(OUTWARD, c, u), seq, ack, tsv, te)
    assert got == (u.S, u.R, (tsv + u.tsoff - c.tsoff) & MASK, u.T)
    assert (u.state, u.lease) == (State.LENT, 7)
    assert (u.cack, u.eack, u.cte, u.edge) == (ack, seq, te, (seq + u.wnd) & MASK)


@settings(deadline=None)
@given(c=CLIENT, u=UPSTREAM, at=POINT, packet=st.tuples(NUMBER, NUMBER, NUMBER, NUMBER))
def test_outward_and_inward_are_inverse(
    c: Conn, u: Conn, at: tuple[int, int, int], packet: tuple[int, int, int, int]
) -> None:
    """An acknowledgement of what went out comes back as one of what was sent, its echo likewise."""
    lend(u, c, *at, 7)
    seq, ack, tsv, tse = packet
    out = moved(shift(OUTWARD, c, u), seq, ack, tsv, tse)
    back = moved(shift(INWARD, u=u), out[1], out[0], out[3], out[2])
    assert back == (ack, seq, tse, tsv)


@settings(deadline=None)
@given(c=CLIENT, u=UPSTREAM, at=POINT, then=POINT)
def test_a_wire_is_frozen_where_the_client_leaves_it(
    c: Conn, u: Conn, at: tuple[int, int, int], then: tuple[int, int, int]
) -> None:
    lend(u, c, *at, 7)
    out = moved(shift(OUTWARD, c, u), then[0], then[1], 0, then[2])
    freeze(u, *then)
    assert (out[0], out[1], out[3]) == (u.S, u.R, u.T)
    assert u.lease == 0


@settings(deadline=None)
@given(
    u=UPSTREAM, lendings=st.lists(st.tuples(CLIENT, POINT, st.integers(0, 2**20), st.integers(0, 2**20)), max_size=8)
)
def test_a_wire_goes_on_without_a_gap_from_client_to_client(
    u: Conn, lendings: list[tuple[Conn, tuple[int, int, int], int, int]]
) -> None:
    """To its peer it is one connection, which has sent and received what all clients have, whoever they were."""
    snd, rcv, sent, received = u.S, u.R, 0, 0
    for k, (c, (seq, ack, te), up, down) in enumerate(lendings):
        lend(u, c, seq, ack, te, k + 1)
        assert moved(shift(OUTWARD, c, u), seq, ack)[:2] == ((snd + sent) & MASK, (rcv + received) & MASK)
        sent, received = sent + up, received + down
        freeze(u, seq + up, ack + down, te)
        assert ((snd + sent) & MASK, (rcv + received) & MASK) == (u.S, u.R)
    # its sleeping owner stands where it always stood, and is understood
    out = moved(shift(OWNER_OUT, u=u), u.oS, u.oR)
    assert out[:2] == (u.S, u.R)
    assert moved(shift(OWNER_IN, u=u), u.R, u.S)[:2] == (u.oR, u.oS)


@settings(deadline=None)
@given(u=UPSTREAM, packet=st.tuples(NUMBER, NUMBER))
def test_an_owner_that_was_never_asked_is_left_alone(u: Conn, packet: tuple[int, int]) -> None:
    for which in (OWNER_OUT, OWNER_IN):
        x = shift(which, u=u)
        assert moved(x, *packet)[:2] == packet
        assert (x.tsv, x.tse, x.start, x.to) == (0, 0, 0, 0)


@settings(deadline=None)
@given(c=CLIENT, trips=st.lists(st.tuples(*[st.integers(0, 2**20)] * 4, NUMBER), max_size=8))
def test_home_sees_one_stream_whatever_the_client_did_elsewhere(
    c: Conn, trips: list[tuple[int, int, int, int, int]]
) -> None:
    seq, ack, snd, rcv = c.S, c.R, c.S, c.R
    for at_home_up, at_home_down, away_up, away_down, te in trips:
        # at home: its own numbers and the wire's go together
        seq, ack, snd, rcv = seq + at_home_up, ack + at_home_down, snd + at_home_up, rcv + at_home_down
        assert moved(shift(HOME_OUT, c), seq, ack)[:2] == (snd & MASK, rcv & MASK)
        assert moved(shift(HOME_IN, c), rcv, snd)[:2] == (ack & MASK, seq & MASK)
        leave_home(c, seq, ack, te)
        assert (snd & MASK, rcv & MASK) == (c.S, c.R)
        seq, ack = seq + away_up, ack + away_down
        come_home(c, seq, ack, te)
        assert (c.state, c.lease, c.endpoint) == (State.AT_HOME, 0, 0)
        out = moved(shift(HOME_OUT, c), seq, ack, 5, te)
        assert out == (snd & MASK, rcv & MASK, 5, c.T)


@settings(deadline=None)
@given(c=CLIENT, at=POINT, then=POINT, tsv=NUMBER)
def test_home_out_and_in_are_inverse(c: Conn, at: tuple[int, int, int], then: tuple[int, int, int], tsv: int) -> None:
    leave_home(c, *at)
    come_home(c, *then)
    seq, ack, te = then
    out = moved(shift(HOME_OUT, c), seq, ack, tsv, te)
    assert moved(shift(HOME_IN, c), out[1], out[0], out[3], out[2]) == (ack, seq, te, tsv)


@settings(deadline=None)
@given(c=CLIENT, u=UPSTREAM, at=POINT, window=st.integers(0, 65535))
def test_windows_are_told_in_the_readers_scale(c: Conn, u: Conn, at: tuple[int, int, int], window: int) -> None:
    """Never more than was meant, and no less than a unit of the scale and the field's room make necessary."""
    lend(u, c, *at, 7)
    for x, meant, scale in (
        # the client's window in the scale that U announced to its peer; the peer's in the scale that H announced to C
        (shift(OUTWARD, c, u), window << c.rws, u.rws),
        (shift(INWARD, u=u), window << u.sws, c.sws),
    ):
        told = min(window << x.start >> x.to, 65535) << scale
        assert told <= meant
        assert told + (1 << scale) > min(meant, 65535 << scale)


# ---- when a wire may be taken back ----


@settings(deadline=None)
@given(
    c=CLIENT, u=UPSTREAM, at=POINT, request=st.integers(1, 5000), body=st.integers(0, 500), acks=st.integers(0, 6000)
)
def test_idle_is_when_both_have_all(
    c: Conn, u: Conn, at: tuple[int, int, int], request: int, body: int, acks: int
) -> None:
    seq, ack, te = at
    lend(u, c, seq, ack, te, 7)
    begin(u.rsp, ack)
    u.next = seq + request
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % body + b"x" * body
    assert not idle(u)
    for cut in range(1, len(answer), 37):
        follow(u.rsp, ack, answer[:cut])
        u.cack = ack + cut
        assert not idle(u)
    follow(u.rsp, ack, answer)
    assert not idle(u)
    u.cack = ack + len(answer)
    assert not idle(u)
    assume(acks != request)
    u.eack = seq + acks
    assert not idle(u)
    u.eack = seq + request
    assert idle(u)


def test_a_wire_without_a_request_is_idle() -> None:
    u = Conn(state=State.LENT)
    u.rsp.state = ResponseState.IDLE
    assert idle(u)
