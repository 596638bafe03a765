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
#include "packet.h"
#include "stock.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct up_scratch);
} head_buffer SEC(".maps");

/* The wire that a client away uses, looked up once a packet. */
struct up_way {
	struct up_conn *u; /* 0: none */
	int idle;	   /* nothing of the last request is under way */
};

/* What the rules say of one request. */
struct up_verdict {
	__u32 route, cluster, endpoint;
};

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
UP_FUNCTION int up_act(struct up_action *a, struct up_verdict *v)
{
	if (!a || !v)
		return UP_R_NO_ROUTE;
	v->route = a->route;
	if (a->kind == UP_ACTION_PUNT)
		return a->reason ? a->reason : UP_R_ROUTE_OTHER;
	if (a->kind != UP_ACTION_CLUSTERS)
		return UP_R_NO_ROUTE;
	v->cluster = up_action_cluster(a, a->n > 1 ? bpf_get_prandom_u32() : 0);
	return v->cluster ? UP_OK : UP_R_NO_CLUSTER;
}

static __noinline int up_pick_route(struct up_scratch *s, __u32 table, struct up_verdict *v)
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

static __noinline int up_pick_endpoint(struct up_conn *c, struct up_verdict *v)
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
		__u32 random = bpf_get_prandom_u32();

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
	if (active)
		up_answered(endpoint, 0);
	if (aborted)
		up_count(UP_C_ABORTED);
	up_release(u, &c->peer, workload, endpoint, usable);
}

/* To the home wire, from this packet on. */
static __noinline void up_go_home(struct up_conn *c, struct up_way *w, struct up_packet *p)
{
	if (c->state != UP_AWAY || !w)
		return;
	up_let_go(c, w->u, p, w->idle);
	w->u = 0;
	bpf_spin_lock(&c->lock);
	up_come_home(c, p->seq, p->ack, p->te);
	c->rsp.state = UP_RSP_IDLE;
	c->rsp.flags = 0;
	c->sent = p->seq;
	c->synced = 0;
	bpf_spin_unlock(&c->lock);
	up_count(UP_C_SWITCHES);
}

/* To a free upstream of the endpoint. Returns UP_OK with the client away, or the reason for which it stays where it is. */
static __noinline int up_go_away(struct up_conn *c, struct up_way *w, struct up_packet *p, struct up_scratch *s,
				 struct up_verdict *v)
{
	struct up_endpoint *e = bpf_map_lookup_elem(&endpoints, &v->endpoint);
	struct up_tuple t = {};
	struct up_conn *u = 0;
	__u32 lease = bpf_get_prandom_u32() | 1, i;
	int reason = UP_R_NO_UPSTREAM;

	if (!e || !s || !w)
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
				up_lend(u, c, p->seq, p->ack, p->te, lease);
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
	if (c->state == UP_AWAY)
		up_let_go(c, w->u, p, 1);
	w->u = u;
	bpf_spin_lock(&c->lock);
	if (c->state == UP_AT_HOME)
		up_leave_home(c, p->seq, p->ack, p->te);
	c->dseq = u->dseq;
	c->dack = u->dack;
	c->tsin = u->tsin;
	c->tsout = u->tsout;
	c->peer = t;
	c->lease = lease;
	c->endpoint = v->endpoint;
	c->cluster = v->cluster;
	c->since = p->seq;
	c->state = UP_AWAY;
	bpf_spin_unlock(&c->lock);
	up_asked(v->endpoint);
	up_count(UP_C_SWITCHES);
	return UP_OK;
}

/* The same wire serves the next request. Returns 0 when the wire is the client's no more, or dying. */
static __noinline int up_stay(struct up_conn *c, struct up_conn *u, struct up_packet *p, struct up_scratch *s,
			      struct up_verdict *v)
{
	int ok = 0;

	if (!u || !s)
		return 0;
	bpf_spin_lock(&u->lock);
	if (u->state == UP_LENT && u->lease == c->lease && !(u->rsp.flags & UP_RSPF_CLOSE)) {
		up_begin(u, p, &s->head, v, c->workload);
		ok = 1;
	}
	bpf_spin_unlock(&u->lock);
	if (ok) {
		c->cluster = v->cluster;
		up_asked(v->endpoint);
		up_count(UP_C_SAME_WIRE);
	}
	return ok;
}

/*
 * A request begins with this packet. Returns UP_TC_OK with the client on the wire that the request shall use, or UP_TC_SHOT: too
 * early, TCP asks again.
 */
static __noinline int up_decide(struct __sk_buff *skb, struct up_conn *c, struct up_way *w, struct up_packet *p)
{
	struct up_verdict v = {};
	struct up_scratch *s;
	struct bpf_sock *sk = skb->sk;
	__u32 zero = 0, n = p->pay, reason;
	int framed = 0, idle;

	if (!w)
		return UP_TC_SHOT;
	idle = w->idle;
	s = bpf_map_lookup_elem(&head_buffer, &zero);
	if (!s || !n)
		return UP_TC_SHOT;
	if (sk) {
		struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

		/* what was sent before may have to be sent again, and belongs to the old wire */
		if (tp && tp->snd_una != p->seq && c->state == UP_AWAY) {
			up_count(UP_C_HELD);
			return UP_TC_SHOT;
		}
		if (tp && tp->snd_una != p->seq)
			idle = 0;
	}
	if (!idle) {
		if (c->state == UP_AWAY) {
			up_count(UP_C_HELD);
			return UP_TC_SHOT;
		}
		/* home answers pipelined requests in order; it says when it is through */
		c->flags |= UP_CF_UNSYNCED;
		c->synced = 0;
		up_count(UP_C_HEADS);
		up_count_punt(0, UP_R_PIPELINED);
		return UP_TC_OK;
	}
	if (n > 1024)
		n = 1024;
	n--;
	asm volatile("" : "+r"(n));
	n = (n & 1023) + 1;
	if (bpf_skb_load_bytes(skb, p->off, s->buf, n))
		return UP_TC_SHOT;
	reason = up_head_parse(s, n);
	if (reason == UP_R_SPLIT_HEAD && p->pay > n) {
		n = p->pay < UP_HEAD_MAX ? p->pay : UP_HEAD_MAX;
		n--;
		asm volatile("" : "+r"(n));
		n = (n & (UP_HEAD_MAX - 1)) + 1;
		if (bpf_skb_load_bytes(skb, p->off, s->buf, n))
			return UP_TC_SHOT;
		reason = up_head_parse(s, n);
	}
	up_count(UP_C_HEADS);
	if (!reason) {
		__u64 whole = s->head.len + s->head.length;

		framed = 1;
		if (p->pay > whole) {
			reason = UP_R_PIPELINED;
			framed = 0;
		} else if (p->fin) {
			reason = UP_R_HALF_CLOSE;
		} else if (p->urg) {
			reason = UP_R_URGENT;
			framed = 0;
		}
	}
	if (!reason)
		reason = up_pick_route(s, c->table, &v);
	if (!reason)
		reason = up_pick_endpoint(c, &v);
	if (!reason && !(c->state == UP_AWAY && c->endpoint == v.endpoint && up_stay(c, w->u, p, s, &v)))
		reason = up_go_away(c, w, p, s, &v);
	if (framed) {
		__u64 length = s->head.length;
		__u32 step = length < UP_STRIDE ? (__u32)length : UP_STRIDE;

		c->next = p->seq + s->head.len + step;
		c->left = length - step;
	}
	if (!reason) {
		struct up_route_stat *r;
		__u32 route = v.route;

		r = bpf_map_lookup_elem(&route_stats, &route);
		if (r)
			r->kernel++;
		up_count(UP_C_KERNEL);
		return UP_TC_OK;
	}
	up_go_home(c, w, p);
	if (framed) {
		bpf_spin_lock(&c->lock);
		up_response_begin(&c->rsp, p->ack, s->head.method == UP_METHOD_HEAD);
		bpf_spin_unlock(&c->lock);
	} else {
		c->flags |= UP_CF_UNSYNCED;
		c->synced = 0;
	}
	up_count_punt(v.route, reason);
	return UP_TC_OK;
}

#endif
