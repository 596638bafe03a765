/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * wire.h - the arithmetic of lending wires, over struct up_conn alone: no packet, no map, no clock.
 *
 * A wire is what a remote peer sees of a connection: S the next byte to it, R the next byte from it, T its last timestamp.
 * Lent:   wire number = client's number + constant (dseq for what it sends, dack for what it acknowledges).
 * Frozen: S, R, T stand; packets between the socket that owns the wire and its peer are translated between the two.
 * All numbers are modulo 2^32 (RFC 9293); timestamps likewise (RFC 7323).
 */
#ifndef UNDERPASS_CORE_WIRE_H
#define UNDERPASS_CORE_WIRE_H

#include "response.h"

/* What is added to a packet's numbers, and how its window is rescaled: (window << from) >> to. */
struct up_shift {
	__u32 seq, ack, tsv, tse;
	__u8 from, to;
};

/* Lends upstream u to the client c at c's numbers (seq: first byte to go there, ack: next byte expected, te: its echo). */
UP_INLINE void up_lend(struct up_conn *u, const struct up_conn *c, __u32 seq, __u32 ack, __u32 te, __u32 lease)
{
	u->dseq = u->S - seq;
	u->dack = u->R - ack;
	u->tsin = te - u->T;
	u->tsout = u->tsoff - c->tsoff;
	u->xrws = c->rws;
	u->xsws = c->sws;
	u->edge = seq + u->wnd;
	u->cack = ack;
	u->eack = seq;
	u->cte = te;
	u->lease = lease;
	u->state = UP_LENT;
}

/* The lent wire as its peer sees it when the client stands at seq, ack, te. */
UP_INLINE void up_freeze(struct up_conn *u, __u32 seq, __u32 ack, __u32 te)
{
	u->S = seq + u->dseq;
	u->R = ack + u->dack;
	u->T = te - u->tsin;
	u->lease = 0;
	u->flags &= ~UP_CF_ACTIVE;
}

/* The client leaves its home wire at seq, ack, te. */
UP_INLINE void up_leave_home(struct up_conn *c, __u32 seq, __u32 ack, __u32 te)
{
	c->S = seq + c->dseq;
	c->R = ack + c->dack;
	c->T = te - c->tsin;
}

/* The client comes home at seq, ack, te. */
UP_INLINE void up_come_home(struct up_conn *c, __u32 seq, __u32 ack, __u32 te)
{
	c->dseq = c->S - seq;
	c->dack = c->R - ack;
	c->tsin = te - c->T;
	c->tsout = 0;
	c->lease = 0;
	c->endpoint = 0;
	c->state = UP_AT_HOME;
}

/*
 * For a client that begins its next request: it has read the response to the last one. Of a response that could not be followed
 * (UP_RSP_LOST) only that tells, and only if nothing is on its way; see up_response_over().
 */
UP_INLINE int up_spent(const struct up_conn *u)
{
	return up_response_over(&u->rsp, u->cack) && (u->rsp.state == UP_RSP_IDLE || u->eack == u->next);
}

/* The same once the client's acknowledgement `ack` is noted; without a lock only a guess. */
UP_INLINE int up_about_spent(const struct up_conn *u, __u32 ack)
{
	return up_response_over(&u->rsp, up_after(ack, u->cack) ? ack : u->cack) &&
	       (u->rsp.state == UP_RSP_IDLE || u->eack == u->next);
}

/*
 * Nothing of the last request is under way any more, for sure: the wire may be frozen without a packet of the client's. That a
 * client has acknowledged all there was of a response that cannot be followed says nothing: the rest may come a second later,
 * and would be the next client's.
 */
UP_INLINE int up_idle(const struct up_conn *u)
{
	return u->rsp.state != UP_RSP_LOST && up_spent(u);
}

/* The client has not got all of the response. Of one that ends with the connection nobody can say so. */
UP_INLINE int up_cut_short(const struct up_conn *u)
{
	const struct up_response *r = &u->rsp;

	if (r->state == UP_RSP_IDLE || r->state == UP_RSP_CLOSE || r->state == UP_RSP_LOST)
		return 0;
	return !(r->flags & UP_RSPF_DONE) || r->left || up_before(u->cack, r->end);
}

/* From the client to the peer of the lent wire. */
UP_INLINE struct up_shift up_outward(const struct up_conn *c, const struct up_conn *u)
{
	struct up_shift x = { u->dseq, u->dack, u->tsout, -u->tsin, c->rws, u->rws };

	return x;
}

/* From the peer of the lent wire to the client. */
UP_INLINE struct up_shift up_inward(const struct up_conn *u)
{
	struct up_shift x = { -u->dack, -u->dseq, u->tsin, -u->tsout, u->sws, u->xsws };

	return x;
}

/* Between the owner of a frozen wire and its peer. */
UP_INLINE struct up_shift up_owner_out(const struct up_conn *u)
{
	struct up_shift x = { u->S - u->oS, u->R - u->oR, 0, 0, 0, 0 };

	return x;
}
UP_INLINE struct up_shift up_owner_in(const struct up_conn *u)
{
	struct up_shift x = { u->oR - u->R, u->oS - u->S, 0, 0, 0, 0 };

	return x;
}

/* Between a client at home and the home peer. */
UP_INLINE struct up_shift up_home_out(const struct up_conn *c)
{
	struct up_shift x = { c->dseq, c->dack, 0, -c->tsin, 0, 0 };

	return x;
}
UP_INLINE struct up_shift up_home_in(const struct up_conn *c)
{
	struct up_shift x = { -c->dack, -c->dseq, c->tsin, 0, 0, 0 };

	return x;
}

UP_INLINE int up_shifted(const struct up_shift *x)
{
	return (x->seq | x->ack | x->tsv | x->tse) || x->from != x->to;
}

#endif
