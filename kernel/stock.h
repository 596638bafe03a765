/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * stock.h - the free upstreams of a (workload, endpoint): local ports, last in first out, so that warm connections are used and
 * cold ones age at the bottom. A stale port is harmless: whoever takes it looks the connection up and lends it only if FREE.
 */
#ifndef UNDERPASS_STOCK_H
#define UNDERPASS_STOCK_H

#include "maps.h"

/* A stock does not fit on the stack of a program. */
static const __u8 up_empty_stock[sizeof(struct up_stock)] __attribute__((aligned(8)));

/* Puts a free upstream into its stock. Returns 0, or -1 when the stock is full (home sees the entry's missing STOCKED flag). */
UP_INLINE int up_stock_put(__u32 workload, __u32 endpoint, const struct up_tuple *t)
{
	struct up_stock_key key = { workload, endpoint };
	struct up_stock *s = bpf_map_lookup_elem(&stocks, &key);
	int put = -1;
	__u32 n;

	if (!s) {
		bpf_map_update_elem(&stocks, &key, up_empty_stock, BPF_NOEXIST);
		s = bpf_map_lookup_elem(&stocks, &key);
		if (!s)
			return -1;
	}
	bpf_spin_lock(&s->lock);
	n = s->n;
	if (n < UP_STOCK_SLOTS) {
		s->port[up_bound(n, UP_STOCK_SLOTS - 1)] = t->lport;
		s->laddr[0] = t->laddr[0];
		s->laddr[1] = t->laddr[1];
		s->laddr[2] = t->laddr[2];
		s->laddr[3] = t->laddr[3];
		s->n = n + 1;
		put = 0;
	}
	bpf_spin_unlock(&s->lock);
	return put;
}

/* Takes the warmest upstream's tuple. Returns 0; or -1, having told home (at most once per UP_WANT_NS) that more are wanted. */
UP_INLINE int up_stock_take(__u32 workload, __u32 endpoint, __u32 cluster, const struct up_endpoint *e,
			    struct up_tuple *t)
{
	struct up_stock_key key = { workload, endpoint };
	struct up_stock *s = bpf_map_lookup_elem(&stocks, &key);
	__u64 now;
	__u32 n;
	int want = 0;

	if (!s) {
		bpf_map_update_elem(&stocks, &key, up_empty_stock, BPF_NOEXIST);
		s = bpf_map_lookup_elem(&stocks, &key);
		if (!s)
			return -1;
	}
	__builtin_memcpy(t->raddr, e->addr, sizeof(t->raddr));
	t->rport = e->port;
	bpf_spin_lock(&s->lock);
	n = s->n;
	if (n && n <= UP_STOCK_SLOTS) {
		n--;
		t->lport = s->port[up_bound(n, UP_STOCK_SLOTS - 1)];
		t->laddr[0] = s->laddr[0];
		t->laddr[1] = s->laddr[1];
		t->laddr[2] = s->laddr[2];
		t->laddr[3] = s->laddr[3];
		s->n = n;
	} else {
		s->misses++;
		want = 1;
	}
	bpf_spin_unlock(&s->lock);
	if (!want)
		return 0;
	now = bpf_ktime_get_ns();
	bpf_spin_lock(&s->lock);
	want = now - s->wanted_ns > UP_WANT_NS;
	if (want)
		s->wanted_ns = now;
	bpf_spin_unlock(&s->lock);
	if (want)
		up_send_event(UP_EVENT_WANT, workload, endpoint, cluster, 0, 0);
	return -1;
}

/* Removes one port wherever it stands. Only for control: it walks the stock. */
UP_INLINE void up_stock_remove(__u32 workload, __u32 endpoint, __be16 port)
{
	struct up_stock_key key = { workload, endpoint };
	struct up_stock *s = bpf_map_lookup_elem(&stocks, &key);
	__u32 i, n;

	if (!s)
		return;
	bpf_spin_lock(&s->lock);
	n = s->n;
	for (i = 0; i < UP_STOCK_SLOTS; i++) {
		if (i >= n)
			break;
		if (s->port[i] == port) {
			n--;
			s->port[i] = s->port[up_bound(n, UP_STOCK_SLOTS - 1)];
			s->n = n;
			break;
		}
	}
	bpf_spin_unlock(&s->lock);
}

/* A wire that its client no longer uses: back into the stock, or dead. Called without locks. */
UP_INLINE void up_release(struct up_conn *u, const struct up_tuple *t, __u32 workload, __u32 endpoint, int usable)
{
	if (usable && !up_stock_put(workload, endpoint, t))
		return;
	u->state = UP_DEAD;
	u->closed_ns = bpf_ktime_get_ns();
	up_send_event(UP_EVENT_DEAD, workload, endpoint, 0, u->cookie, t);
}

#endif
