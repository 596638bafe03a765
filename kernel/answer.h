/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * answer.h - replies that the kernel gives itself.
 *
 * A client that is answered here is away without a wire. Each of its packets that carries bytes of the request comes back as one from
 * its peer: with the whole reply as long as the client has not acknowledged it, with nothing but an acknowledgement else. A lost
 * answer is thus asked for by the client's own TCP. What it sends without payload is taken as sent (UP_TC_STOLEN): refused, TCP would
 * believe in congestion.
 */
#ifndef UNDERPASS_ANSWER_H
#define UNDERPASS_ANSWER_H

#include "turn.h"

UP_INLINE int up_answered_all(const struct up_conn *c, __u32 ack)
{
	return !up_before(ack, c->reply_seq + c->reply_len);
}

/* The packet of a client without a wire. */
static __noinline int up_answer(struct __sk_buff *skb, struct up_conn *c, struct up_packet *p)
{
	struct up_reflection x = {};
	struct up_reply *r;
	__u64 id;
	__u32 end;
	int again;

	if (!c || !p)
		return UP_TC_SHOT;
	if (!p->pay)
		return UP_TC_STOLEN;
	id = c->reply;
	r = bpf_map_lookup_elem(&replies, &id);
	if ((!r || r->len < c->reply_len) && !up_answered_all(c, p->ack)) {
		/* Its rule went while the answer was lost. Nobody else has the request: the client must hear that, and not wait. */
		x.seq = c->reply_seq;
		x.ack = p->seq + p->pay;
		x.rst = 1;
		x.flags = BPF_F_INGRESS;
		up_count(UP_C_ABORTED);
		return up_reflect(skb, p, &x);
	}
	end = p->seq + p->pay;
	if (up_after(end, c->next)) /* a pipelined head behind: the client sends it again */
		end = c->next;
	if (up_before(c->taken, p->seq))
		return UP_TC_STOLEN; /* a gap in the body: it comes again */
	again = up_after(c->taken, p->seq);
	if (up_after(end, c->taken))
		c->taken = end;
	if (r && !up_answered_all(c, p->ack)) {
		x.text = r->text;
		x.n = c->reply_len;
		if (again)
			up_count(UP_C_REPLIED_AGAIN);
	}
	x.seq = x.n ? c->reply_seq : c->reply_seq + c->reply_len;
	x.ack = c->taken;
	/* as much as its home peer, in that one's scale */
	x.window = 65536 >> (c->sws & 15);
	if (x.window > 65535)
		x.window = 65535;
	x.flags = BPF_F_INGRESS;
	return up_reflect(skb, p, &x);
}

#endif
