/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * decide.h - one request: from its head to an endpoint, and from the endpoint to a wire.
 *
 * Runs in tc egress of the pod's interface, inside TCP's output and under the client socket's lock: for one client, decision,
 * switch and every packet are serialised. Maps are only looked up here; every choice is the core's.
 */
#ifndef UNDERPASS_DECIDE_H
#define UNDERPASS_DECIDE_H

#include "core/balance.h"
#include "core/hosts.h"
#include "flow.h"
#include "packet.h"
#include "stock.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct up_scratch);
} head_buffer SEC(".maps");

/* What the rules say of one request. */
struct up_verdict {
	__u32 route, cluster, endpoint;
	__u32 reason; /* UP_OK, or why it is not the kernel's to decide */
	__u32 framed; /* the lengths of its head and body are known */
	__u64 reply;  /* what the kernel answers itself; 0: nothing */
};

/*
 * A packet on its way out. Not on the stack: of what it loads from a map value the verifier knows nothing, and so walks what
 * follows once, not once for every verdict.
 */
struct up_leaving {
	struct up_packet p;
	struct up_verdict v;
	__u32 idle;   /* nothing of the client's last request is under way */
	__u32 judged; /* a request begins with this packet, and its verdict stands */
	__u32 stayed; /* it has begun on the wire that the client had */
	__u32 pad;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct up_leaving);
} leaving_buffer SEC(".maps");

UP_FUNCTION int up_wider(struct up_scratch *s)
{
	return s ? up_host_wider(s) : 0;
}

static __always_inline struct up_vhost *up_find_vhost(struct up_scratch *s, __u32 flags)
{
	struct up_vhost *v = bpf_map_lookup_elem(&vhosts, &s->key);
	__u32 i;

	if (v)
		return v;
	if (flags & UP_TABLE_WILD) {
		for (i = 0; i < UP_LABELS_MAX; i++) {
			if (!up_wider(s))
				break;
			v = bpf_map_lookup_elem(&vhosts, &s->key);
			if (v)
				return v;
		}
	}
	if (!(flags & UP_TABLE_ANY))
		return 0;
	up_host_any(s);
	return bpf_map_lookup_elem(&vhosts, &s->key);
}

/* The action's cluster, or why it has none for the kernel. */
UP_INLINE int up_act(struct up_action *a, struct up_verdict *v)
{
	if (!a || !v)
		return UP_R_NO_ROUTE;
	v->route = a->route;
	if (a->kind == UP_ACTION_PUNT) {
		v->reply = a->reply ? a->rule : 0;
		return a->reason ? a->reason : UP_R_ROUTE_OTHER;
	}
	if (a->kind != UP_ACTION_CLUSTERS)
		return UP_R_NO_ROUTE;
	v->cluster = up_action_cluster(a, a->n > 1 ? bpf_get_prandom_u32() : 0);
	return v->cluster ? UP_OK : UP_R_NO_CLUSTER;
}

UP_INLINE int up_pick_route(struct up_scratch *s, __u32 table, struct up_verdict *v)
{
	struct up_table *t = bpf_map_lookup_elem(&tables, &table);
	struct up_vhost *host;
	__u32 flags, id;

	if (!t || !s || !v)
		return UP_R_NO_TABLE;
	flags = t->flags;
	if (!(flags & UP_TABLE_LIVE))
		return UP_R_NO_TABLE;
	if ((s->head.flags & UP_HEAD_PORT) && !(flags & UP_TABLE_IGNORE_PORT))
		return UP_R_BAD_HOST;
	s->key.table = table;
	host = up_find_vhost(s, flags);
	if (!host)
		return UP_R_NO_VHOST;
	id = host->program;
	if (id) {
		void *inner = bpf_map_lookup_elem(&programs, &id);
		struct up_program *p;
		__u32 zero = 0;
		int i;

		if (!inner)
			return UP_R_CAPACITY;
		p = bpf_map_lookup_elem(inner, &zero);
		if (!p)
			return UP_R_CAPACITY;
		i = up_program_match(p, s);
		if (i < 0)
			return -i;
		i = up_bound((__u32)i, UP_ROUTES - 1);
		i = up_bound(p->routes[i].action, UP_ROUTES - 1);
		return up_act(&p->actions[i], v);
	}
	return up_act(&host->direct, v);
}

UP_INLINE int up_pick_endpoint(struct up_conn *c, struct up_verdict *v)
{
	struct up_cluster *k = bpf_map_lookup_elem(&clusters, &v->cluster);
	struct up_choice choice = {};
	struct up_endpoint *e;
	struct up_workload *w;
	__u32 id, reason;

	if (!k || !c)
		return UP_R_NO_CLUSTER;
	if (k->n == 1 && k->live) { /* no choice, no lock */
		id = *(volatile __u32 *)&k->slot[0];
	} else {
		__u32 random = k->lb == UP_LB_ROUND_ROBIN ? 0 : bpf_get_prandom_u32();

		bpf_spin_lock(&k->lock);
		reason = up_balance(k, random, &choice);
		bpf_spin_unlock(&k->lock);
		if (reason)
			return reason;
		id = choice.endpoint[0];
	}
	if (choice.endpoint[1]) {
		struct up_endpoint_stat *a = bpf_map_lookup_elem(&endpoint_stats, &choice.endpoint[0]);
		struct up_endpoint_stat *b = bpf_map_lookup_elem(&endpoint_stats, &choice.endpoint[1]);

		if (a && b && (__s32)b->active < (__s32)a->active)
			id = choice.endpoint[1];
	}
	v->endpoint = id;
	e = bpf_map_lookup_elem(&endpoints, &id);
	if (!e || !e->live)
		return UP_R_ENDPOINT_GONE;
	if (e->family != c->family)
		return UP_R_FAMILY;
	w = bpf_map_lookup_elem(&workloads, &c->workload);
	if (w) {
		__u32 *own = e->family == 4 ? w->addr4 : w->addr6;

		if (own[3] == e->addr[3] && own[2] == e->addr[2] && own[1] == e->addr[1] && own[0] == e->addr[0])
			return UP_R_HAIRPIN;
	}
	return UP_OK;
}

/* The request on the wire begins: what its response and its end are measured from. Under u->lock. */
UP_INLINE void up_begin(struct up_conn *u, struct up_packet *p, struct up_head *h, struct up_verdict *v, __u32 workload)
{
	up_response_begin(&u->rsp, p->ack, h->method == UP_METHOD_HEAD);
	u->start_ns = p->left_ns;
	u->asked = h->len + h->length;
	u->answered = 0;
	if (h->flags & UP_HEAD_CLOSE)
		u->rsp.flags |= UP_RSPF_CLOSE;
	u->head = p->seq;
	u->next = p->seq + h->len + (__u32)h->length;
	u->route = v->route;
	u->cluster = v->cluster;
	u->workload = workload;
	u->flags |= UP_CF_ACTIVE;
	u->requests++;
}

/* Freezes the client's wire at this packet and gives it back. idle: nothing of its last request is under way. */
static __noinline void up_let_go(struct up_conn *c, struct up_conn *u, struct up_packet *p, int idle)
{
	struct up_config *g;
	__u32 zero = 0, endpoint, workload;
	int usable, mine, active = 0, aborted = 0;

	g = bpf_map_lookup_elem(&config, &zero);
	if (!u || !g)
		return;
	bpf_spin_lock(&u->lock);
	mine = u->lease == c->lease && (u->state == UP_LENT || u->state == UP_DYING);
	usable =
		mine && idle && u->state == UP_LENT && u->home == g->home_generation && !(u->rsp.flags & UP_RSPF_CLOSE);
	if (mine) {
		active = (u->flags & UP_CF_ACTIVE) != 0;
		aborted = !idle && up_cut_short(u);
		/* idle: the endpoint has got all up to `next` and nothing behind it, wherever a reset that skips bytes may stand */
		up_freeze(u, idle ? u->next : p->seq, p->ack, p->te);
		u->state = usable ? UP_FREE : UP_DEAD;
	}
	endpoint = u->endpoint;
	workload = u->workload;
	bpf_spin_unlock(&u->lock);
	if (!mine)
		return;
	if (active) {
		up_answered(endpoint, 0);
		up_flow_count(u, aborted ? 0 : u->rsp.status);
	}
	if (aborted)
		up_count(UP_C_ABORTED);
	up_release(u, &c->peer, workload, endpoint, usable);
}

/* To the home wire, from this packet on. */
static __noinline void up_go_home(struct up_conn *c, struct up_conn *u, struct up_packet *p, int idle)
{
	if (!c || !p || c->state != UP_AWAY)
		return;
	up_let_go(c, u, p, idle);
	bpf_spin_lock(&c->lock);
	up_come_home(c, p->seq, p->ack, p->te);
	c->reply = 0;
	c->rsp.state = UP_RSP_IDLE;
	c->rsp.flags = 0;
	c->sent = p->seq;
	c->synced = 0;
	bpf_spin_unlock(&c->lock);
	up_count(UP_C_SWITCHES);
}

enum { UP_LOOK_LOST, UP_LOOK_MINE, UP_LOOK_LEFT };

/*
 * Looks at the wire that a client away uses, and notes what the client acknowledges. Judged, the request either begins on it or the
 * wire is given back at once, in the same lock: idle, it could be reclaimed under the decision otherwise. A request that must wait
 * changes nothing. Returns UP_LOOK_*.
 */
UP_INLINE int up_look(struct up_conn *c, struct up_conn *u, struct up_leaving *l, struct up_scratch *s)
{
	struct up_packet *p = &l->p;
	struct up_verdict *v = &l->v;
	__u32 zero = 0, endpoint = 0, workload = 0;
	struct up_config *g = bpf_map_lookup_elem(&config, &zero);
	int mine = 0, left = 0, usable = 0, active = 0;

	if (!u || !g)
		return UP_LOOK_LOST;
	bpf_spin_lock(&u->lock);
	if (c->lease && u->lease == c->lease && (u->state == UP_LENT || u->state == UP_DYING)) {
		mine = 1;
		if (p->ackf && up_after(p->ack, u->cack))
			u->cack = p->ack;
		if (p->te)
			u->cte = p->te;
		l->idle = l->judged ? up_spent(u) : up_idle(u);
		if (l->judged && l->idle) {
			/* what could not be followed may have more to say: such a wire is nobody else's */
			if (u->rsp.state == UP_RSP_LOST)
				u->rsp.flags |= UP_RSPF_CLOSE;
			usable = u->state == UP_LENT && !(u->rsp.flags & UP_RSPF_CLOSE);
			if (usable && !v->reason && v->endpoint == c->endpoint) {
				up_begin(u, p, &s->head, v, c->workload);
				l->stayed = 1;
			} else {
				usable = usable && u->home == g->home_generation;
				active = (u->flags & UP_CF_ACTIVE) != 0;
				endpoint = u->endpoint;
				workload = u->workload;
				/* the endpoint has got all up to `next` and nothing behind it */
				up_freeze(u, u->next, p->ack, p->te);
				u->state = usable ? UP_FREE : UP_DEAD;
				left = 1;
			}
		}
	}
	bpf_spin_unlock(&u->lock);
	if (l->stayed) {
		c->cluster = v->cluster;
		up_asked(v->endpoint);
		up_count(UP_C_SAME_WIRE);
	}
	if (left) {
		if (active) {
			up_answered(endpoint, 0);
			up_flow_count(u, u->rsp.status);
		}
		up_release(u, &c->peer, workload, endpoint, usable);
	}
	return left ? UP_LOOK_LEFT : mine ? UP_LOOK_MINE : UP_LOOK_LOST;
}

/*
 * To a free upstream of the endpoint, which *wire is then. Returns UP_OK with the client away, or the reason for which it stays
 * where it is.
 */
UP_INLINE int up_go_away(struct up_conn *c, struct up_conn **wire, struct up_leaving *l, struct up_scratch *s)
{
	struct up_packet *p = &l->p;
	struct up_verdict *v = &l->v;
	struct up_endpoint *e = bpf_map_lookup_elem(&endpoints, &v->endpoint);
	struct up_tuple t = {};
	struct up_conn *u = 0;
	__u32 i;
	int reason = UP_R_NO_UPSTREAM;

	if (!e)
		return UP_R_ENDPOINT_GONE;
	for (i = 0; i < 4; i++) { /* a stock may hold ports whose connection has ended meanwhile */
		int ok = 0;

		if (up_stock_take(c->workload, v->endpoint, v->cluster, e, &t))
			return UP_R_NO_UPSTREAM;
		u = bpf_map_lookup_elem(&conns, &t);
		if (!u)
			continue;
		bpf_spin_lock(&u->lock);
		if (u->kind == UP_KIND_UPSTREAM && u->state == UP_FREE) {
			if (u->mss < c->mss)
				reason = UP_R_MSS;
			else if (p->pay > u->wnd)
				/* Held back it would wait for TCP's probe, 200 ms from now: nothing is under way that the endpoint
				 * could acknowledge, and the client goes by the window of its previous peer. */
				reason = UP_R_WINDOW;
			else if ((u->flags ^ c->flags) & UP_CF_USEC_TS)
				reason = UP_R_TIMESTAMPS;
			else {
				u->lendings += 2;
				up_lend(u, c, p->seq, p->ack, p->te, u->lendings);
				up_begin(u, p, &s->head, v, c->workload);
				u->peer = p->t;
				reason = UP_OK;
			}
			ok = 1;
		}
		bpf_spin_unlock(&u->lock);
		if (ok)
			break;
		u = 0;
	}
	if (!u)
		return UP_R_NO_UPSTREAM;
	if (reason != UP_OK) {
		up_stock_put(c->workload, v->endpoint, &t);
		return reason;
	}
	*wire = u;
	/* From home, ingress reads these numbers under the lock; of a client that is away already it reads none of them. */
	if (c->state == UP_AT_HOME) {
		bpf_spin_lock(&c->lock);
		up_leave_home(c, p->seq, p->ack, p->te);
		c->state = UP_AWAY;
		bpf_spin_unlock(&c->lock);
	}
	c->dseq = u->dseq;
	c->dack = u->dack;
	c->tsin = u->tsin;
	c->tsout = u->tsout;
	c->peer = t;
	c->lease = u->lease;
	c->endpoint = v->endpoint;
	c->cluster = v->cluster;
	c->since = p->seq;
	c->reply = 0;
	up_asked(v->endpoint);
	up_count(UP_C_SWITCHES);
	return UP_OK;
}

/* Reads the request that begins with this packet, and what the rules say of it. Returns 0, or -1: its bytes are out of reach. */
UP_INLINE int up_judge(struct __sk_buff *skb, struct up_conn *c, struct up_leaving *l, struct up_scratch *s)
{
	struct up_packet *p = &l->p;
	struct up_verdict *v = &l->v;
	__u32 n = p->pay, reason;

	if (!n)
		return -1;
	v->route = v->cluster = v->endpoint = v->framed = v->reply = 0;
	if (n > 1024)
		n = 1024;
	n--;
	asm volatile("" : "+r"(n));
	n = (n & 1023) + 1;
	if (bpf_skb_load_bytes(skb, p->off, s->buf, n))
		return -1;
	reason = up_head_parse(s, n);
	if (reason == UP_R_SPLIT_HEAD && p->pay > n) {
		n = p->pay < UP_HEAD_MAX ? p->pay : UP_HEAD_MAX;
		n--;
		asm volatile("" : "+r"(n));
		n = (n & (UP_HEAD_MAX - 1)) + 1;
		if (bpf_skb_load_bytes(skb, p->off, s->buf, n))
			return -1;
		reason = up_head_parse(s, n);
	}
	if (!reason) {
		__u64 whole = s->head.len + s->head.length;

		v->framed = 1;
		if (p->pay > whole) {
			reason = UP_R_PIPELINED;
			v->framed = 0;
		} else if (p->fin) {
			reason = UP_R_HALF_CLOSE;
		} else if (p->urg) {
			reason = UP_R_URGENT;
			v->framed = 0;
		}
	}
	if (!reason)
		reason = up_pick_route(s, c->table, v);
	if (!reason)
		reason = up_pick_endpoint(c, v);
	if (reason == UP_R_NO_VHOST || reason == UP_R_NO_ROUTE || reason == UP_R_NO_CLUSTER ||
	    reason == UP_R_NO_ENDPOINT)
		v->reply = reason;
	/* What cannot be answered at once, or ends the connection, is home's. */
	if (!v->framed || s->head.length > UP_REPLY_BODY_MAX || (s->head.flags & (UP_HEAD_EXPECT | UP_HEAD_CLOSE)) ||
	    p->fin)
		v->reply = 0;
	v->reason = reason;
	return 0;
}

/* A head is due, and home is still busy, or cannot say where this one begins: it answers in order, and says when it is through. */
UP_INLINE void up_leave_to_home(struct up_conn *c, __u32 reason)
{
	c->flags |= UP_CF_UNSYNCED;
	c->synced = 0;
	up_count(UP_C_HEADS);
	up_count_punt(0, reason);
}

/* The request is answered here: the client goes to no wire, see answer.h. Returns 0 if there is no such answer. */
UP_INLINE int up_go_unserved(struct up_conn *c, struct up_leaving *l, struct up_scratch *s)
{
	struct up_packet *p = &l->p;
	struct up_punt_key key = { l->v.route, l->v.reason };
	__u64 id = l->v.reply;
	struct up_reply *r = bpf_map_lookup_elem(&replies, &id);
	__u64 one = 1, *n;

	if (!r || !r->len || r->len > UP_REPLY_MAX || r->head > r->len)
		return 0;
	if (c->state == UP_AT_HOME) {
		bpf_spin_lock(&c->lock);
		up_leave_home(c, p->seq, p->ack, p->te);
		c->state = UP_AWAY;
		bpf_spin_unlock(&c->lock);
	}
	c->lease = 0;
	c->endpoint = 0;
	c->reply = id;
	c->reply_seq = p->ack;
	c->reply_len = s->head.method == UP_METHOD_HEAD ? r->head : r->len;
	c->taken = p->seq;
	n = bpf_map_lookup_elem(&reply_stats, &key);
	if (n)
		(*n)++;
	else
		bpf_map_update_elem(&reply_stats, &key, &one, BPF_NOEXIST);
	up_count(UP_C_REPLIES);
	return 1;
}

/*
 * Carries a verdict out. Returns UP_TC_OK with the client on the wire that the request shall use, or UP_TC_SHOT: too early, TCP
 * asks again.
 */
UP_INLINE int up_decide(struct up_conn *c, struct up_conn **wire, struct up_leaving *l, struct up_scratch *s)
{
	struct up_packet *p = &l->p;
	struct up_verdict *v = &l->v;
	__u32 reason;

	if (!l->judged || !l->idle) {
		/* what was sent before may have to be sent again, and belongs to the old wire */
		if (c->state == UP_AWAY) {
			up_count(UP_C_HELD);
			return UP_TC_SHOT;
		}
		up_leave_to_home(c, UP_R_PIPELINED);
		return UP_TC_OK;
	}
	up_count(UP_C_HEADS);
	reason = v->reason;
	if (v->reply && up_go_unserved(c, l, s))
		reason = UP_OK;
	else if (!reason && !l->stayed)
		reason = up_go_away(c, wire, l, s);
	if (v->framed) {
		__u64 length = s->head.length;
		__u32 step = length < UP_STRIDE ? (__u32)length : UP_STRIDE;

		c->next = p->seq + s->head.len + step;
		c->left = length - step;
	}
	if (!reason) {
		struct up_route_stat *r;
		__u32 route = v->route;

		r = bpf_map_lookup_elem(&route_stats, &route);
		if (r)
			r->kernel++;
		if (s->head.flags & UP_HEAD_CLOSE)
			c->flags |= UP_CF_LAST;
		up_count(UP_C_KERNEL);
		return UP_TC_OK;
	}
	up_go_home(c, 0, p, 1);
	if (v->framed) {
		bpf_spin_lock(&c->lock);
		up_response_begin(&c->rsp, p->ack, s->head.method == UP_METHOD_HEAD);
		bpf_spin_unlock(&c->lock);
	} else {
		c->flags |= UP_CF_UNSYNCED;
		c->synced = 0;
	}
	up_count_punt(v->route, reason);
	return UP_TC_OK;
}

#endif
