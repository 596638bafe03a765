// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc_workload.bpf.c - the pod's end of its interface: decides requests, switches wires, translates packets.
 *
 * up_egress sees what the pod sends, up_ingress what it receives. Packets of no connection of ours cost one look-up.
 */
#include "decide.h"
#include "follow.h"
#include "turn.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The sleeping owner of an upstream speaks: translated when the wire is frozen, silenced when it is somebody else's. */
static __noinline int up_owner_egress(struct __sk_buff *skb, struct up_conn *u, struct up_packet *p)
{
	void *d = (void *)(long)skb->data, *e = (void *)(long)skb->data_end;
	struct up_move m = {};
	int lent, fresh;

	if (d + UP_ETH <= e)
		__builtin_memcpy(u->dmac, d, 6);
	bpf_spin_lock(&u->lock);
	lent = u->state == UP_LENT || u->state == UP_DYING;
	fresh = u->state == UP_FREE && !(u->flags & UP_CF_STOCKED);
	if (fresh)
		u->flags |= UP_CF_STOCKED;
	m.x = up_owner_out(u);
	bpf_spin_unlock(&u->lock);
	/* The acknowledgement that ends the handshake: only now is the next hop known. A wire lent before had its first request sent
	 * to no address, and repeated 200 ms later. */
	if (fresh)
		up_stock_put(u->workload, u->endpoint, &p->t);
	if (lent) {
		up_count(UP_C_OWNER_DROPPED);
		return UP_TC_SHOT;
	}
	if (!up_shifted(&m.x))
		return UP_TC_OK;
	m.t = p->t;
	m.v6 = p->v6;
	m.outgoing = 1;
	if (up_packet_move(skb, &m)) {
		up_count(UP_C_TRANSLATE_ERROR);
		return UP_TC_SHOT;
	}
	return UP_TC_OK;
}

static __noinline int up_home_egress(struct __sk_buff *skb, struct up_conn *c, struct up_packet *p)
{
	struct up_move m = {};

	if (p->pay && up_after(p->seq + p->pay, c->sent))
		c->sent = p->seq + p->pay;
	m.x = up_home_out(c);
	m.x.seq -= p->back;
	if (!up_shifted(&m.x))
		return UP_TC_OK;
	m.t = p->t;
	m.v6 = p->v6;
	m.outgoing = 1;
	if (up_packet_move(skb, &m)) {
		up_count(UP_C_TRANSLATE_ERROR);
		return UP_TC_SHOT;
	}
	return UP_TC_OK;
}

/* The client's packet out on the wire that is lent to it. */
static __noinline int up_away_egress(struct __sk_buff *skb, struct up_conn *c, struct up_conn *u, struct up_packet *p)
{
	struct up_move m = {};

	if (!u || u->lease != c->lease) {
		up_count(UP_C_STALE_DROPPED);
		return UP_TC_SHOT;
	}
	if (p->pay) {
		if (up_before(p->seq, c->since)) {
			/* acknowledged long ago, on another wire */
			up_count(UP_C_STALE_DROPPED);
			return UP_TC_STOLEN;
		}
		/* A wire may carry more than half of the sequence space; nothing older than a window (1 GiB) is repeated. */
		if (up_after(p->seq, c->since + UP_STRIDE))
			c->since = p->seq - UP_STRIDE;
		/* The client goes by the window of its previous peer. Refused, the segment stays unsent; the endpoint's next
		 * acknowledgement brings its own window, and TCP goes on. */
		if (up_after(p->seq + p->pay, u->edge)) {
			up_count(UP_C_WINDOW_HELD);
			return UP_TC_SHOT;
		}
	}
	m.x = up_outward(c, u);
	m.x.seq -= p->back;
	m.t = c->peer;
	m.v6 = p->v6;
	m.outgoing = 1;
	m.has_mac = 1;
	__builtin_memcpy(m.dmac, u->dmac, 6);
	if (up_packet_move(skb, &m)) {
		up_count(UP_C_TRANSLATE_ERROR);
		return UP_TC_SHOT;
	}
	return UP_TC_OK;
}

/*
 * Looks at the wire that a client away uses, and notes what the client acknowledges. claim: a head is due and may be decided; an
 * idle wire is then claimed for it, so that it cannot be reclaimed under the decision. A head that is held back must not claim:
 * the wire would be idle never more. Returns 0 when the wire is the client's no more.
 */
static __noinline int up_look(struct up_conn *c, struct up_way *w, struct up_packet *p, int claim)
{
	struct up_conn *u = w ? w->u : 0;
	int mine = 0, idle = 0;

	if (!u)
		return 0;
	bpf_spin_lock(&u->lock);
	if (u->lease == c->lease && (u->state == UP_LENT || u->state == UP_DYING)) {
		mine = 1;
		if (p->ackf && up_after(p->ack, u->cack))
			u->cack = p->ack;
		if (p->te)
			u->cte = p->te;
		idle = claim ? up_spent(u) : up_idle(u);
		if (claim && idle) {
			/* what could not be followed may have more to say: such a wire is nobody else's */
			if (u->rsp.state == UP_RSP_LOST)
				u->rsp.flags |= UP_RSPF_CLOSE;
			u->rsp.state = UP_RSP_HEAD;
			u->rsp.flags &= UP_RSPF_CLOSE;
		}
	}
	bpf_spin_unlock(&u->lock);
	w->idle = idle;
	return mine;
}

/* The client's FIN or RST. Returns -1 when the packet goes on as any other. */
static __noinline int up_client_ends(struct __sk_buff *skb, struct up_conn *c, struct up_way *w, struct up_packet *p)
{
	struct up_conn *u;
	int r;

	c->flags |= UP_CF_FIN;
	if (c->state != UP_AWAY || !w)
		return -1;
	if (w->idle) {
		up_go_home(c, w, p);
		return -1;
	}
	u = w->u;
	/* In the middle of a request the endpoint must hear of it: a half-close is answered, a reset stops it. The wire is not
	 * lent again; home learns from the socket's end that its own connection is orphaned. */
	r = up_away_egress(skb, c, u, p);
	if (!u)
		return r;
	bpf_spin_lock(&u->lock);
	if (u->lease == c->lease && u->state == UP_LENT)
		u->state = UP_DYING;
	bpf_spin_unlock(&u->lock);
	if (p->rst) {
		up_let_go(c, u, p, 0);
		c->lease = 0;
	}
	return r;
}

/* Whether the socket knows that all it sent before this packet has arrived. An acknowledgement may have passed ingress, and wait
 * for the application to give the socket's lock back. */
UP_INLINE int up_settled(struct __sk_buff *skb, struct up_packet *p)
{
	struct bpf_sock *sk = skb->sk;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;

	return !tp || tp->snd_una == p->seq;
}

/* Home has said where the next head is due: a packet that starts there is one, unless those bytes have gone to home before. */
static __noinline void up_resync(struct up_conn *c, struct up_packet *p)
{
	int due;

	bpf_spin_lock(&c->lock);
	due = c->synced && p->seq == c->sync && !up_after(c->sent, c->sync);
	if (due)
		c->synced = 0;
	bpf_spin_unlock(&c->lock);
	if (!due)
		return;
	c->flags &= ~UP_CF_UNSYNCED;
	c->next = p->seq;
	c->left = 0;
}

static __noinline int up_client_egress(struct __sk_buff *skb, struct up_conn *c, struct up_packet *p)
{
	struct up_way w = { 0, 1 };
	int due, r;

	if ((c->flags & UP_CF_UNSYNCED) && p->pay)
		up_resync(c, p);
	if (c->left && (__s32)(c->next - p->seq) < (__s32)(UP_STRIDE / 2)) {
		__u32 by = c->left < UP_STRIDE ? (__u32)c->left : UP_STRIDE;

		c->next += by;
		c->left -= by;
	}
	due = p->pay && p->seq == c->next && !c->left && !(c->flags & UP_CF_UNSYNCED);
	if (c->state == UP_AWAY) {
		w.u = bpf_map_lookup_elem(&conns, &c->peer);
		if (!up_look(c, &w, p, due && up_settled(skb, p)) && c->lease) {
			/* the wire was taken back while it was idle */
			bpf_spin_lock(&c->lock);
			up_come_home(c, c->next, p->ack, p->te);
			c->rsp.state = UP_RSP_IDLE;
			c->rsp.flags = 0;
			c->sent = c->next;
			bpf_spin_unlock(&c->lock);
			w.idle = 1;
			w.u = 0;
		}
	} else {
		w.idle = up_response_over(&c->rsp, p->ack);
	}
	if (!(c->flags & UP_CF_UNSYNCED) && !c->left && !p->rst) {
		/* A packet was cut where the next head begins: what lies behind those bytes waits for them, at home, too, if the wire
		 * was taken back meanwhile. Let through, it would reach an endpoint that it is not for, or turn up later in the middle
		 * of something else that is sent in its place. */
		if (up_after(p->seq, c->next)) {
			if (p->pay || p->fin) {
				up_count(UP_C_HELD);
				return UP_TC_SHOT;
			}
			/* A pure acknowledgement must not tell of them: a peer that has seen a number ahead of what it got takes no window
			 * from the wire's next client, which begins in front of it (RFC 9293, SND.WL1). */
			p->back = p->seq - c->next;
		}
		/* A pipelined head rides behind this body. It must not reach this endpoint undecided; a FIN behind it goes with it.
		 * Home takes it, and says where the next one is due. */
		if (p->pay && up_before(p->seq, c->next) && up_after(p->seq + p->pay, c->next)) {
			if (c->state == UP_AWAY) {
				if (up_cut(skb, p, c->next - p->seq))
					return UP_TC_SHOT;
			} else {
				c->flags |= UP_CF_UNSYNCED;
				c->synced = 0;
				up_count(UP_C_HEADS);
				up_count_punt(0, UP_R_PIPELINED);
			}
		}
	}
	if (p->rst || (p->fin && !due)) {
		r = up_client_ends(skb, c, &w, p);
		if (r >= 0)
			return r;
	} else if (due) {
		r = up_decide(skb, c, &w, p);
		if (r != UP_TC_OK)
			return r;
	}
	return c->state == UP_AWAY ? up_away_egress(skb, c, w.u, p) : up_home_egress(skb, c, p);
}

static __noinline int up_leaving(struct __sk_buff *skb)
{
	struct up_packet p = {};
	struct up_conn *c;

	if (up_packet_read(skb, &p, 1) || p.syn)
		return UP_TC_OK;
	c = bpf_map_lookup_elem(&conns, &p.t);
	if (!c)
		return UP_TC_OK;
	if (c->kind == UP_KIND_UPSTREAM)
		return up_owner_egress(skb, c, &p);
	return up_client_egress(skb, c, &p);
}

SEC("tc")
int up_egress(struct __sk_buff *skb)
{
	if (!up_packet_ours(skb, 1) || skb->mark == UP_MARK_TURNED)
		return UP_TC_OK;
	return up_leaving(skb);
}

/* A packet of an upstream's endpoint. */
static __noinline int up_upstream_ingress(struct __sk_buff *skb, struct up_conn *u, struct up_packet *p)
{
	struct up_following f = {};
	struct up_move m = {};
	__u32 seen, endpoint, wnd;
	int lent, wants = 0, over = 0, error = 0, active = 0;

	wnd = (__u32)p->window << (u->sws & 15);
	bpf_spin_lock(&u->lock);
	endpoint = u->endpoint;
	seen = p->seq - u->dack;
	lent = u->state == UP_LENT || u->state == UP_DYING;
	if (p->ackf && !p->rst) {
		u->wnd = wnd;
		if (lent) {
			__u32 ack = p->ack - u->dseq;

			if (up_after(ack, u->eack))
				u->eack = ack;
			if (up_after(ack + wnd, u->edge))
				u->edge = ack + wnd;
		}
	}
	if (lent && (p->fin || p->rst)) {
		if (u->state == UP_LENT && !p->pay && up_idle(u) && !(u->rsp.flags & UP_RSPF_CLOSE)) {
			/* the endpoint closes an idle connection: its owner's business, the client never hears of it */
			active = (u->flags & UP_CF_ACTIVE) != 0;
			up_freeze(u, u->next, u->cack, u->cte);
			u->state = UP_DEAD;
			lent = 0;
		} else {
			u->state = UP_DYING;
		}
	} else if (!lent && (p->fin || p->rst)) {
		u->state = UP_DEAD;
	}
	if (lent) {
		m.x = up_inward(u);
		m.t = u->peer;
		if (p->pay) {
			wants = up_response_wants(&u->rsp);
			if (wants) {
				up_follow_take(&f, u);
			} else {
				up_response_pass(&u->rsp, seen + p->pay);
				over = (u->flags & UP_CF_ACTIVE) && (u->rsp.flags & UP_RSPF_DONE) && !u->rsp.left &&
				       !up_before(u->rsp.high, u->rsp.end);
			}
		}
	} else {
		m.x = up_owner_in(u);
		m.t = p->t;
	}
	if (over) {
		u->flags &= ~UP_CF_ACTIVE;
		error = u->rsp.status >= 500;
	}
	bpf_spin_unlock(&u->lock);
	if (p->fin)
		up_count(UP_C_UPSTREAM_FIN);
	if (p->rst)
		up_count(UP_C_UPSTREAM_RST);
	if (wants) {
		int r;

		f.seen = seen;
		r = up_follow(skb, u, p, &f);

		if (r == UP_FOLLOW_GAP) {
			up_count(UP_C_GAP_DROPPED);
			return UP_TC_SHOT;
		}
		over = r == UP_FOLLOW_OVER || r == UP_FOLLOW_ERROR;
		error = r == UP_FOLLOW_ERROR;
	}
	if (over) {
		up_count(UP_C_RESPONSES);
		up_answered(endpoint, error);
	} else if (active) {
		up_answered(endpoint, 0);
	}
	if (!up_shifted(&m.x) && !lent)
		return UP_TC_OK;
	m.v6 = p->v6;
	if (up_packet_move(skb, &m)) {
		up_count(UP_C_TRANSLATE_ERROR);
		return UP_TC_SHOT;
	}
	return UP_TC_OK;
}

/* A packet of the client's home peer. */
static __noinline int up_home_ingress(struct __sk_buff *skb, struct up_conn *c, struct up_packet *p)
{
	struct up_following f = {};
	struct up_move m = {};
	__u32 S, R, seen;
	int away, wants = 0;

	bpf_spin_lock(&c->lock);
	away = c->state == UP_AWAY;
	S = c->S;
	R = c->R;
	m.x = up_home_in(c);
	seen = p->seq - c->dack;
	if (!away && p->pay) {
		wants = up_response_wants(&c->rsp);
		if (wants)
			up_follow_take(&f, c);
		else
			up_response_pass(&c->rsp, seen + p->pay);
	}
	bpf_spin_unlock(&c->lock);
	if (away) {
		/* Home repeats what the client has long read (its acknowledgement went elsewhere), or probes: answered here. */
		if (!p->fin && !p->rst && up_before(p->seq, R))
			return up_turn(skb, p, S, R);
		up_count(UP_C_AWAY_DROPPED);
		return UP_TC_SHOT;
	}
	f.seen = seen;
	if (wants && up_follow(skb, c, p, &f) == UP_FOLLOW_GAP) {
		up_count(UP_C_GAP_DROPPED);
		return UP_TC_SHOT;
	}
	if (!up_shifted(&m.x))
		return UP_TC_OK;
	m.t = p->t;
	m.v6 = p->v6;
	if (up_packet_move(skb, &m)) {
		up_count(UP_C_TRANSLATE_ERROR);
		return UP_TC_SHOT;
	}
	return UP_TC_OK;
}

static __noinline int up_arriving(struct __sk_buff *skb)
{
	struct up_packet p = {};
	struct up_conn *c;

	if (up_packet_read(skb, &p, 0) || p.syn)
		return UP_TC_OK;
	c = bpf_map_lookup_elem(&conns, &p.t);
	if (!c)
		return UP_TC_OK;
	if (c->kind == UP_KIND_UPSTREAM)
		return up_upstream_ingress(skb, c, &p);
	return up_home_ingress(skb, c, &p);
}

SEC("tc")
int up_ingress(struct __sk_buff *skb)
{
	return up_packet_ours(skb, 0) ? up_arriving(skb) : UP_TC_OK;
}
