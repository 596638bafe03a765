// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc_workload.bpf.c - the pod's end of its interface: decides requests, switches wires, translates packets.
 *
 * up_egress sees what the pod sends, up_ingress what it receives. Packets of no connection of ours cost one look-up.
 */
#include "answer.h"
#include "decide.h"
#include "follow.h"
#include "health.h"
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
	if (up_packet_move_rarely(skb, &m)) {
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
	if (up_packet_move_rarely(skb, &m)) {
		up_count(UP_C_TRANSLATE_ERROR);
		return UP_TC_SHOT;
	}
	return UP_TC_OK;
}

/* The client's packet out on the wire that is lent to it. */
UP_INLINE int up_away_egress(struct __sk_buff *skb, struct up_conn *c, struct up_conn *u, struct up_packet *p)
{
	struct up_move m = {};

	if (!u || !c->lease || u->lease != c->lease) {
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

static __noinline int up_away_egress_rarely(struct __sk_buff *skb, struct up_conn *c, struct up_conn *u,
					    struct up_packet *p)
{
	return c && p ? up_away_egress(skb, c, u, p) : UP_TC_SHOT;
}

/* The client's FIN or RST. Returns -1 when the packet goes on as any other. */
static __noinline int up_client_ends(struct __sk_buff *skb, struct up_conn *c, struct up_conn *u, struct up_leaving *l)
{
	int r;

	if (!c || !l)
		return UP_TC_SHOT;
	c->flags |= UP_CF_FIN;
	if (c->state != UP_AWAY)
		return -1;
	if (l->idle) {
		up_go_home(c, u, &l->p, 1);
		return -1;
	}
	/* In the middle of a request the endpoint must hear of it: a half-close is answered, a reset stops it. The wire is not
	 * lent again; home learns from the socket's end that its own connection is orphaned. */
	r = up_away_egress_rarely(skb, c, u, &l->p);
	if (!u)
		return r;
	bpf_spin_lock(&u->lock);
	if (u->lease == c->lease && u->state == UP_LENT)
		u->state = UP_DYING;
	bpf_spin_unlock(&u->lock);
	if (l->p.rst) {
		up_let_go(c, u, &l->p, 0);
		c->lease = 0;
	}
	return r;
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

/* The wire was taken back while it was idle. */
static __noinline void up_taken_back(struct up_conn *c, struct up_packet *p)
{
	bpf_spin_lock(&c->lock);
	up_come_home(c, c->next, p->ack, p->te);
	c->rsp.state = UP_RSP_IDLE;
	c->rsp.flags = 0;
	c->sent = c->next;
	bpf_spin_unlock(&c->lock);
}

UP_INLINE int up_client_egress(struct __sk_buff *skb, struct up_conn *c, struct up_leaving *l)
{
	struct up_packet *p = &l->p;
	struct up_conn *u = 0;
	struct up_scratch *s;
	__u32 zero = 0;
	int due, r;

	s = bpf_map_lookup_elem(&head_buffer, &zero);
	if (!s)
		return UP_TC_SHOT;
	l->idle = 1;
	l->judged = 0;
	l->stayed = 0;
	if ((c->flags & UP_CF_UNSYNCED) && p->pay)
		up_resync(c, p);
	if (c->left && (__s32)(c->next - p->seq) < (__s32)(UP_STRIDE / 2)) {
		__u32 by = c->left < UP_STRIDE ? (__u32)c->left : UP_STRIDE;

		c->next += by;
		c->left -= by;
	}
	due = p->pay && p->seq == c->next && !c->left && !(c->flags & UP_CF_UNSYNCED) && !p->rst;
	if (due && (c->flags & UP_CF_LAST)) {
		/* The client has said that there are no more requests (RFC 9112, section 9.6). The endpoint ends the connection. */
		up_count(UP_C_HELD);
		return UP_TC_SHOT;
	}
	if (c->state == UP_AWAY && c->reply) {
		l->idle = up_answered_all(c, p->ack);
	} else if (c->state == UP_AWAY) {
		u = bpf_map_lookup_elem(&conns, &c->peer);
		if (c->lease && (!u || u->lease != c->lease)) {
			up_taken_back(c, p);
			u = 0;
		}
	} else {
		l->idle = up_response_over(&c->rsp, p->ack);
	}
	/* The rules are asked before the lock is taken; whether the wire is idle is a guess until then. */
	if (due && (c->state != UP_AWAY || c->reply ? l->idle : u && up_about_spent(u, p->ack)) &&
	    up_settled(skb, p->seq)) {
		if (up_judge(skb, c, l, s))
			return UP_TC_SHOT;
		l->judged = 1;
	}
	if (c->state == UP_AWAY && !c->reply) {
		r = up_look(c, u, l, s);
		if (r != UP_LOOK_MINE)
			u = 0;
		if (r == UP_LOOK_LOST && c->lease) {
			up_taken_back(c, p);
			l->idle = 1;
		}
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
		r = up_client_ends(skb, c, u, l);
		if (r >= 0)
			return r;
	} else if (due) {
		r = up_decide(c, &u, l, s);
		if (r != UP_TC_OK)
			return r;
	}
	if (c->state != UP_AWAY)
		return up_home_egress(skb, c, p);
	return c->reply ? up_answer(skb, c, p) : up_away_egress(skb, c, u, p);
}

UP_INLINE int up_ours_leaving(struct __sk_buff *skb)
{
	struct up_leaving *l;
	struct up_conn *c;
	__u32 zero = 0;

	l = bpf_map_lookup_elem(&leaving_buffer, &zero);
	if (!l || up_packet_read(skb, &l->p, 1) || l->p.syn)
		return UP_TC_OK;
	c = bpf_map_lookup_elem(&conns, &l->p.t);
	if (!c)
		return UP_TC_OK;
	if (c->kind == UP_KIND_UPSTREAM)
		return up_owner_egress(skb, c, &l->p);
	return up_client_egress(skb, c, l);
}

SEC("tc")
int up_egress(struct __sk_buff *skb)
{
	if (!up_packet_ours(skb, 1) || skb->mark == UP_MARK_TURNED)
		return UP_TC_OK;
	return up_ours_leaving(skb);
}

/* A packet of an upstream's endpoint. */
UP_INLINE int up_upstream_ingress(struct __sk_buff *skb, struct up_conn *u, struct up_arriving *a)
{
	struct up_packet *p = &a->p;
	struct up_move m = {};
	__u32 seen, endpoint, wnd;
	int lent, followed = 0, again = 0, over = 0, error = 0, active = 0, failed = 0;

	/* Read without the lock: what was read counts only if the entry is still the same when the lock is held. */
	if (p->pay && u->lease) {
		a->was = u->rsp;
		if (up_response_wants(&a->was)) {
			a->lease = u->lease;
			a->seen = p->seq - u->dack;
			up_follow(skb, a);
			followed = 1;
		}
	}
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
			failed = up_unanswered(u, p, seen);
			u->state = UP_DYING;
		}
	} else if (!lent && (p->fin || p->rst)) {
		u->state = UP_DEAD;
	}
	if (lent) {
		m.x = up_inward(u);
		m.t = u->peer;
		if (p->pay) {
			__u32 high = u->rsp.high;

			if (!up_response_wants(&u->rsp)) {
				a->gap = 0;
				up_response_pass(&u->rsp, seen + p->pay);
				over = up_ended(u);
			} else if (!followed || a->lease != u->lease || a->seen != seen || !up_same(&a->was, &u->rsp)) {
				again = 1;
			} else if (!a->gap) {
				u->rsp = a->now;
				up_response_pass(&u->rsp, seen + p->pay);
				over = up_ended(u);
			}
			u->answered += u->rsp.high - high;
		}
		error = over && u->rsp.status >= 500;
	} else {
		m.x = up_owner_in(u);
		m.t = p->t;
	}
	bpf_spin_unlock(&u->lock);
	if (p->fin)
		up_count(UP_C_UPSTREAM_FIN);
	if (p->rst)
		up_count(UP_C_UPSTREAM_RST);
	if (again) {
		a->seen = seen;
		over = up_follow_again(skb, u, a);
		error = over && u->rsp.status >= 500;
	}
	if (lent && p->pay && a->gap) {
		up_count(UP_C_GAP_DROPPED);
		return UP_TC_SHOT;
	}
	if (over) {
		up_count(UP_C_RESPONSES);
		up_answered(endpoint, error);
		up_health(endpoint, u->rsp.status);
	} else if (active) {
		up_answered(endpoint, 0);
	}
	if (failed)
		up_health(endpoint, 0);
	if (over || active)
		up_flow_count(u, u->rsp.status);
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
static __noinline int up_home_ingress(struct __sk_buff *skb, struct up_conn *c, struct up_arriving *a)
{
	struct up_packet *p;
	struct up_move m = {};
	__u32 S, R, seen;
	int away, wants = 0;

	if (!c || !a)
		return UP_TC_SHOT;
	p = &a->p;
	a->gap = 0;
	bpf_spin_lock(&c->lock);
	away = c->state == UP_AWAY;
	S = c->S;
	R = c->R;
	m.x = up_home_in(c);
	seen = p->seq - c->dack;
	if (!away && p->pay) {
		wants = up_response_wants(&c->rsp);
		if (!wants)
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
	if (wants) {
		a->seen = seen;
		up_follow_again(skb, c, a);
		if (a->gap) {
			up_count(UP_C_GAP_DROPPED);
			return UP_TC_SHOT;
		}
	}
	if (!up_shifted(&m.x))
		return UP_TC_OK;
	m.t = p->t;
	m.v6 = p->v6;
	if (up_packet_move_rarely(skb, &m)) {
		up_count(UP_C_TRANSLATE_ERROR);
		return UP_TC_SHOT;
	}
	return UP_TC_OK;
}

UP_INLINE int up_ours_arriving(struct __sk_buff *skb)
{
	struct up_arriving *a;
	struct up_conn *c;
	__u32 zero = 0;

	a = bpf_map_lookup_elem(&arriving_buffer, &zero);
	if (!a || up_packet_read(skb, &a->p, 0) || a->p.syn)
		return UP_TC_OK;
	c = bpf_map_lookup_elem(&conns, &a->p.t);
	if (!c)
		return UP_TC_OK;
	if (c->kind == UP_KIND_UPSTREAM)
		return up_upstream_ingress(skb, c, a);
	return up_home_ingress(skb, c, a);
}

SEC("tc")
int up_ingress(struct __sk_buff *skb)
{
	if (skb->mark == UP_MARK_TURNED) { /* our own answer: from outside no mark comes in */
		skb->mark = 0;
		return UP_TC_OK;
	}
	return up_packet_ours(skb, 0) ? up_ours_arriving(skb) : UP_TC_OK;
}
