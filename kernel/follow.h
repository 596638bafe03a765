/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* follow.h - reads a response's framing out of the packets that pass in ingress. */
#ifndef UNDERPASS_FOLLOW_H
#define UNDERPASS_FOLLOW_H

#include "packet.h"

enum { UP_FOLLOW_ON, UP_FOLLOW_GAP, UP_FOLLOW_OVER, UP_FOLLOW_ERROR };

/* Two buffers of the same CPU never meet: egress and ingress of a pod run one after the other, but each keeps its own. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct up_rsp_scratch);
} response_buffer SEC(".maps");

struct up_following {
	struct up_response r;
	struct __sk_buff *skb;
	struct up_rsp_scratch *s;
	__u32 seen, off, pay, lease;
	int gap;
};

static long up_follow_step(__u32 i, void *state)
{
	struct up_following *f = state;
	__u32 at = f->r.next - f->seen, n;

	(void)i;
	if (!up_response_wants(&f->r))
		return 1;
	if ((__s32)at < 0) {
		/* The bytes that we wait for are missing in front of this packet. What follows could not be read again once it has
		 * passed, so it must wait as well: also in front of a head, which may turn out to be that of a chunked response.
		 * Nobody could tell then where that ends, and a pipelined request would leave for another wire in its middle. */
		f->gap = 1;
		return 1;
	}
	if (at >= f->pay)
		return 1;
	n = f->pay - at;
	if (n > UP_RSP_HEAD_MAX)
		n = UP_RSP_HEAD_MAX;
	if (f->r.state == UP_RSP_CHUNKS && n > 32)
		n = 32;
	n--;
	asm volatile("" : "+r"(n));
	n = (n & (UP_RSP_HEAD_MAX - 1)) + 1;
	if (bpf_skb_load_bytes(f->skb, f->off + at, f->s->buf, n))
		return 1;
	if (up_response_feed(&f->r, f->s, n) <= 0)
		return 1;
	return 0;
}

/* Takes the response as it stands, to be followed outside the lock. Under u->lock. */
UP_INLINE void up_follow_take(struct up_following *f, const struct up_conn *u)
{
	f->r = u->rsp;
	f->lease = u->lease;
}

/* Follows the packet's payload, whose first byte the client knows as `seen`. Frames of six bytes bound the steps of a packet. */
static __noinline int up_follow(struct __sk_buff *skb, struct up_conn *u, struct up_packet *p, struct up_following *f)
{
	__u32 zero = 0, before;
	int result = UP_FOLLOW_ON;

	if (!f || !u)
		return UP_FOLLOW_ON;
	f->s = bpf_map_lookup_elem(&response_buffer, &zero);
	if (!f->s)
		return UP_FOLLOW_ON;
	before = f->r.next;
	f->skb = skb;
	f->off = p->off;
	f->pay = p->pay;
	f->gap = UP_ZERO;
	bpf_loop(16384, up_follow_step, f, 0);
	if (f->gap)
		return UP_FOLLOW_GAP;
	/* needed, but gone by before the head was known */
	if (up_response_wants(&f->r) && f->r.state != UP_RSP_HEAD && up_after(f->r.high, f->r.next) &&
	    before != f->r.next)
		f->r.state = UP_RSP_LOST;
	bpf_spin_lock(&u->lock);
	if (u->lease == f->lease && u->rsp.next == before) {
		f->r.high = u->rsp.high;
		u->rsp = f->r;
	}
	up_response_pass(&u->rsp, f->seen + p->pay);
	if (u->kind == UP_KIND_UPSTREAM && (u->flags & UP_CF_ACTIVE) && (u->rsp.flags & UP_RSPF_DONE) && !u->rsp.left &&
	    !up_before(u->rsp.high, u->rsp.end)) {
		u->flags &= ~UP_CF_ACTIVE;
		result = u->rsp.status >= 500 ? UP_FOLLOW_ERROR : UP_FOLLOW_OVER;
	}
	bpf_spin_unlock(&u->lock);
	return result;
}

#endif
