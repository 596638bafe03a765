/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* follow.h - reads a response's framing out of the packets that pass in ingress. */
#ifndef UNDERPASS_FOLLOW_H
#define UNDERPASS_FOLLOW_H

#include "packet.h"

/* A packet that arrives, and the response in it. Not on the stack, see struct up_leaving. */
struct up_arriving {
	struct up_packet p;
	struct up_response was; /* as it stood before this packet */
	struct up_response now; /* with it */
	__u32 seen;		/* the number by which the client knows the packet's first byte */
	__u32 lease;
	__u32 gap; /* the packet must wait for one in front of it */
	__u32 pad;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct up_arriving);
} arriving_buffer SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct up_rsp_scratch);
} response_buffer SEC(".maps");

struct up_following {
	struct __sk_buff *skb;
	struct up_arriving *a;
	struct up_rsp_scratch *s;
};

static long up_follow_step(__u32 i, void *state)
{
	struct up_following *f = state;
	struct up_arriving *a = f->a;
	__u32 at = a->now.next - a->seen, n;

	(void)i;
	if (!up_response_wants(&a->now))
		return 1;
	if ((__s32)at < 0) {
		/* The bytes that we wait for are missing in front of this packet. What follows could not be read again once it has
		 * passed, so it must wait as well: also in front of a head, which may turn out to be that of a chunked response.
		 * Nobody could tell then where that ends, and a pipelined request would leave for another wire in its middle. */
		a->gap = 1;
		return 1;
	}
	if (at >= a->p.pay)
		return 1;
	n = a->p.pay - at;
	if (n > UP_RSP_HEAD_MAX)
		n = UP_RSP_HEAD_MAX;
	if (a->now.state == UP_RSP_CHUNKS && n > 32)
		n = 32;
	n--;
	asm volatile("" : "+r"(n));
	n = (n & (UP_RSP_HEAD_MAX - 1)) + 1;
	if (bpf_skb_load_bytes(f->skb, a->p.off + at, f->s->buf, n))
		return 1;
	if (up_response_feed(&a->now, f->s, n) <= 0)
		return 1;
	return 0;
}

/* Follows the packet's payload, from a->was to a->now. Frames of six bytes bound the steps of a packet. */
UP_INLINE void up_follow(struct __sk_buff *skb, struct up_arriving *a)
{
	struct up_following f = { skb, a, 0 };
	__u32 zero = 0;

	a->now = a->was;
	a->gap = 0;
	f.s = bpf_map_lookup_elem(&response_buffer, &zero);
	if (!f.s)
		return;
	bpf_loop(16384, up_follow_step, &f, 0);
	/* needed, but gone by before the head was known */
	if (up_response_wants(&a->now) && a->now.state != UP_RSP_HEAD && up_after(a->now.high, a->now.next) &&
	    a->was.next != a->now.next)
		a->now.state = UP_RSP_LOST;
}

/* Is this the response that was followed? Whole words: the struct has no padding that differs. */
UP_INLINE int up_same(const struct up_response *x, const struct up_response *y)
{
	return x->next == y->next && x->end == y->end && x->left == y->left && x->value == y->value &&
	       x->hash == y->hash && x->high == y->high && x->status == y->status && x->state == y->state &&
	       x->step == y->step && x->flags == y->flags && x->match == y->match;
}

/* The response has been answered to its end by what has passed. Clears the mark that it was under way. Under u->lock. */
UP_INLINE int up_ended(struct up_conn *u)
{
	if (!(u->flags & UP_CF_ACTIVE) || !(u->rsp.flags & UP_RSPF_DONE) || u->rsp.left ||
	    up_before(u->rsp.high, u->rsp.end))
		return 0;
	u->flags &= ~UP_CF_ACTIVE;
	return 1;
}

/* Is this the end of an endpoint that owes a response, of which nothing has come? Told once. Under u->lock, from the wire. */
UP_INLINE int up_unanswered(struct up_conn *u, const struct up_packet *p, __u32 seen)
{
	struct up_response *r = &u->rsp;

	if (p->pay || !(u->flags & UP_CF_ACTIVE) || r->state != UP_RSP_HEAD || (r->flags & UP_RSPF_COUNTED) ||
	    (p->fin && !p->rst && seen != r->next))
		return 0;
	r->flags |= UP_RSPF_COUNTED;
	return 1;
}

/*
 * Follows a response that another packet changed while this one was read, or that home sends: once more, with the entry's lock
 * around both ends. Returns 1 when the response has ended with this packet.
 */
static __noinline int up_follow_again(struct __sk_buff *skb, struct up_conn *u, struct up_arriving *a)
{
	int over = 0;
	__u32 high;

	if (!u || !a)
		return 0;
	bpf_spin_lock(&u->lock);
	a->was = u->rsp;
	a->lease = u->lease;
	bpf_spin_unlock(&u->lock);
	up_follow(skb, a);
	if (a->gap)
		return 0;
	bpf_spin_lock(&u->lock);
	high = u->rsp.high;
	if (u->lease == a->lease && u->rsp.next == a->was.next) {
		a->now.high = u->rsp.high;
		u->rsp = a->now;
	}
	up_response_pass(&u->rsp, a->seen + a->p.pay);
	u->answered += u->rsp.high - high;
	over = u->kind == UP_KIND_UPSTREAM && up_ended(u);
	bpf_spin_unlock(&u->lock);
	return over;
}

#endif
