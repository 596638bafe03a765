// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * sockops.bpf.c - birth and death of connections: records a wire's first numbers when it is established, and its end.
 *
 * Attached to the workloads' cgroups (clients) and to home's (upstreams). Only tagged sockets are looked at.
 */
#include <bpf/bpf_core_read.h>

#include "flow.h"
#include "stock.h"
#include "tuple.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define UP_TCP_CLOSE 7

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8[sizeof(struct up_conn)]);
} birth_buffer SEC(".maps");

/* For the peer, whose end is established only by what this socket sends next. */
static __noinline int up_origin_note(struct up_tuple *t, struct up_socket *tag)
{
	struct up_origin o = {};

	if (!t || !tag)
		return 0;
	__builtin_memcpy(o.vip, tag->vip, 16);
	o.vport = tag->vport;
	o.workload = tag->workload;
	bpf_map_update_elem(&origins, t, &o, BPF_ANY);
	return 0;
}

static __noinline int up_established(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct up_socket *tag)
{
	struct tcp_sock *tp;
	struct up_tuple t = {};
	struct up_conn *c;
	__u32 zero = 0;

	if (!tag || !sk)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	c = bpf_map_lookup_elem(&birth_buffer, &zero);
	if (!tp || !c)
		return 0;
	__builtin_memset(c, 0, sizeof(*c));
	up_tuple_of(ctx, &t);
	c->kind = tag->kind;
	c->state = tag->kind == UP_KIND_CLIENT ? UP_AT_HOME : UP_FREE;
	c->family = !t.laddr[0] && !t.laddr[1] && t.laddr[2] == bpf_htonl(0xffff) ? 4 : 6;
	c->S = c->next = c->sent = tp->snd_nxt;
	/* The first byte behind the SYN, whatever came with it: the peer counts from there. The SYN itself counts as acknowledged. */
	c->oS = tp->snd_una - (__u32)tp->bytes_acked + 1;
	c->R = c->oR = tp->rcv_nxt;
	c->T = tp->rx_opt.ts_recent;
	c->tsoff = tp->tsoffset;
	c->rws = BPF_CORE_READ_BITFIELD(tp, rx_opt.rcv_wscale);
	c->sws = BPF_CORE_READ_BITFIELD(tp, rx_opt.snd_wscale);
	c->mss = tp->mss_cache;
	c->wnd = tp->snd_wnd;
	c->workload = tag->workload;
	c->table = tag->table;
	c->endpoint = tag->endpoint;
	c->cluster = tag->cluster;
	c->home = tag->home;
	c->lendings = bpf_get_prandom_u32() | 1;
	c->cookie = bpf_get_socket_cookie(ctx);
	if (bpf_core_field_exists(tp->tcp_usec_ts) && BPF_CORE_READ_BITFIELD(tp, tcp_usec_ts))
		c->flags |= UP_CF_USEC_TS;
	/* Data in the SYN (TCP Fast Open) went to home before anybody looked: home says where the next head is due. */
	if (tag->kind == UP_KIND_CLIENT && tp->snd_una != tp->snd_nxt)
		c->flags |= UP_CF_UNSYNCED;
	if (tag->kind == UP_KIND_CLIENT && BPF_CORE_READ_BITFIELD(tp, syn_data_acked))
		c->flags |= UP_CF_UNSYNCED;
	up_port_note(t.lport);
	if (tag->kind == UP_KIND_CLIENT)
		up_origin_note(&t, tag);
	if (bpf_map_update_elem(&conns, &t, c, BPF_ANY)) {
		up_count(UP_C_CONNS_FULL);
		return 0;
	}
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	if (tag->kind == UP_KIND_CLIENT) {
		up_count(UP_C_CLIENTS);
		return 0;
	}
	/* it is stocked when its own first packet has shown where its frames go: up_owner_egress() */
	up_count(UP_C_UPSTREAMS);
	return 0;
}

/* The client's socket has reached its end, with or without a packet: whatever it held is given up. */
static __noinline int up_client_closed(struct up_conn *c, struct up_tuple *t)
{
	struct up_conn *u = 0;
	int idle = 0, mine = 0, active = 0, aborted = 0;

	if (!c || !t)
		return 0;
	if (c->state == UP_AWAY && c->lease)
		u = bpf_map_lookup_elem(&conns, &c->peer);
	if (u) {
		bpf_spin_lock(&u->lock);
		if (u->lease == c->lease && (u->state == UP_LENT || u->state == UP_DYING)) {
			mine = 1;
			idle = u->state == UP_LENT && up_idle(u) && !(u->rsp.flags & UP_RSPF_CLOSE);
			active = u->flags & UP_CF_ACTIVE;
			aborted = up_cut_short(u);
			up_freeze(u, u->next, u->cack, u->cte);
			u->state = idle ? UP_FREE : UP_DEAD;
		}
		bpf_spin_unlock(&u->lock);
		if (active) {
			up_answered(u->endpoint, 0);
			up_flow_count(u, aborted ? 0 : u->rsp.status);
		}
		if (aborted)
			up_count(UP_C_ABORTED);
		if (mine)
			up_release(u, &c->peer, u->workload, u->endpoint, idle);
	}
	bpf_map_delete_elem(&origins, t);
	c->flags |= UP_CF_CLOSED;
	c->closed_ns = bpf_ktime_get_ns();
	up_send_event(UP_EVENT_CLOSED, c->workload, 0, 0, c->cookie, t);
	return 0;
}

static __noinline int up_closed(struct bpf_sock_ops *ctx)
{
	struct up_tuple t = {};
	struct up_conn *c;
	__u64 now = bpf_ktime_get_ns();
	int frozen;

	up_tuple_of(ctx, &t);
	c = bpf_map_lookup_elem(&conns, &t);
	if (!c || c->cookie != bpf_get_socket_cookie(ctx))
		return 0;
	if (c->kind == UP_KIND_CLIENT)
		return up_client_closed(c, &t);
	/* An upstream's owner is gone; a lent wire goes on without it, until its client lets go. The entry of a frozen one stays until
	 * home forgets it: a socket that is closed by a reset reaches this state before the reset leaves, which must carry the
	 * wire's numbers. */
	bpf_spin_lock(&c->lock);
	frozen = c->state == UP_FREE || c->state == UP_DEAD;
	c->state = frozen ? UP_DEAD : UP_DYING;
	c->closed_ns = now;
	bpf_spin_unlock(&c->lock);
	if (frozen)
		up_stock_remove(c->workload, c->endpoint, t.lport);
	return 0;
}

SEC("sockops")
int up_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct up_socket *tag;

	if (ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
		if (!sk)
			return 1;
		tag = bpf_sk_storage_get(&sockets, sk, 0, 0);
		if (tag && tag->kind)
			up_established(ctx, sk, tag);
	} else if (ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == UP_TCP_CLOSE) {
		up_closed(ctx);
	}
	return 1;
}
