// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * control.bpf.c - what home asks of the data path (struct up_control). A SCHED_CLS program because it needs spin locks, which
 * SEC("syscall") programs may not take on 6.1; it is never attached, only run with BPF_PROG_TEST_RUN over its request.
 */
#include "flow.h"
#include "health.h"
#include "stock.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __noinline int up_reclaim(struct up_tuple *t)
{
	struct up_conn *u = bpf_map_lookup_elem(&conns, t);
	__u32 workload, endpoint, active = 0;
	int taken = 0;

	if (!u || u->kind != UP_KIND_UPSTREAM)
		return UP_CTL_GONE;
	bpf_spin_lock(&u->lock);
	workload = u->workload;
	endpoint = u->endpoint;
	if (u->state == UP_LENT && up_idle(u) && !(u->rsp.flags & UP_RSPF_CLOSE)) {
		active = u->flags & UP_CF_ACTIVE;
		up_freeze(u, u->next, u->cack, u->cte);
		u->state = UP_FREE;
		taken = 1;
	}
	bpf_spin_unlock(&u->lock);
	if (!taken)
		return UP_CTL_BUSY;
	if (active) {
		up_answered(endpoint, 0);
		up_flow_count(u, u->rsp.status);
	}
	up_count(UP_C_RECLAIMED);
	up_release(u, t, workload, endpoint, 1);
	return UP_CTL_OK;
}

static __noinline int up_kill(struct up_tuple *t)
{
	struct up_conn *u = bpf_map_lookup_elem(&conns, t);
	int busy;

	if (!u || u->kind != UP_KIND_UPSTREAM)
		return UP_CTL_GONE;
	bpf_spin_lock(&u->lock);
	if (u->state == UP_LENT && up_idle(u)) {
		up_freeze(u, u->next, u->cack, u->cte);
		u->state = UP_DEAD;
	}
	busy = u->state == UP_LENT || u->state == UP_DYING;
	u->state = busy ? UP_DYING : UP_DEAD;
	bpf_spin_unlock(&u->lock);
	up_stock_remove(u->workload, u->endpoint, t->lport);
	return busy ? UP_CTL_BUSY : UP_CTL_OK;
}

static __noinline int up_sync(struct up_tuple *t, struct up_control *r)
{
	struct up_conn *c = bpf_map_lookup_elem(&conns, t);
	int ok = 0;

	if (!c || !r || c->kind != UP_KIND_CLIENT)
		return UP_CTL_GONE;
	bpf_spin_lock(&c->lock);
	if (c->state == UP_AT_HOME) {
		/* home counts from the first byte of its own connection: oS and oR on its wire */
		c->sync = c->oS + r->received - c->dseq;
		c->rsp.state = UP_RSP_LENGTH;
		c->rsp.flags = UP_RSPF_DONE;
		c->rsp.left = 0;
		c->rsp.end = c->rsp.next = c->oR + r->sent - c->dack;
		c->synced = 1;
		ok = 1;
	}
	bpf_spin_unlock(&c->lock);
	return ok ? UP_CTL_OK : UP_CTL_BUSY;
}

static __noinline int up_forget(struct up_tuple *t, __u64 cookie)
{
	struct up_conn *c = bpf_map_lookup_elem(&conns, t);

	if (!c || c->cookie != cookie)
		return UP_CTL_GONE;
	if (c->kind == UP_KIND_CLIENT ? !(c->flags & UP_CF_CLOSED) : c->state != UP_DEAD)
		return UP_CTL_BUSY;
	return bpf_map_delete_elem(&conns, t) ? UP_CTL_GONE : UP_CTL_OK;
}

SEC("tc")
int up_control(struct __sk_buff *skb)
{
	struct up_control r = {};

	if (bpf_skb_load_bytes(skb, 0, &r, sizeof(r)))
		return UP_CTL_INVALID;
	switch (r.op) {
	case UP_CTL_RECLAIM:
		return up_reclaim(&r.tuple);
	case UP_CTL_KILL:
		return up_kill(&r.tuple);
	case UP_CTL_SYNC:
		return up_sync(&r.tuple, &r);
	case UP_CTL_FORGET:
		return up_forget(&r.tuple, r.cookie);
	case UP_CTL_HEALTH:
		up_health(r.received, r.sent);
		return UP_CTL_OK;
	default:
		return UP_CTL_INVALID;
	}
}
