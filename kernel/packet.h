/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* packet.h - one TCP packet in an skb: reading its headers, and translating it to another wire's numbers and addresses. */
#ifndef UNDERPASS_PACKET_H
#define UNDERPASS_PACKET_H

#include "context.h"
#include "maps.h"

#define UP_ETH 14
#define UP_TC_OK 0
#define UP_TC_SHOT 2	      /* TCP takes the segment as not sent, and sends it again at the next acknowledgement */
#define UP_TC_STOLEN 4	      /* TCP takes the segment as sent */
#define UP_MARK_TURNED 0x7570 /* our own answer on its way back: egress lets it pass */

#define UP_TS_OPTION bpf_htonl(0x0101080a) /* NOP NOP kind 8 length 10: how Linux writes timestamps */

struct up_packet {
	struct up_tuple t;  /* as the pod sees it */
	__u32 l4;	    /* offset of the TCP header */
	__u32 off;	    /* offset of the payload */
	__u32 pay;	    /* bytes of it */
	__u32 seq, ack, te; /* te: timestamp echo, 0 without one */
	__u64 left_ns;	    /* outgoing: when TCP let it leave (CLOCK_MONOTONIC) */
	__u32 back;	    /* how far its sequence number is ahead of what has left the pod; 0 as it is read */
	__u16 window;
	__u8 fin, syn, rst, ackf, urg, v6;
	__u8 tos;
	__u8 pad[3];
};

/* A context may only be read at fixed offsets from its own pointer: the compiler must neither move nor join these loads. */
#define UP_FIELD(skb, field)                                                              \
	({                                                                                \
		__u64 __v;                                                                \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                                     \
			     : "=r"(__v)                                                  \
			     : "r"(skb), "i"(__builtin_offsetof(struct __sk_buff, field)) \
			     : "memory");                                                 \
		(void *)(long)__v;                                                        \
	})

/*
 * Is this packet worth a closer look: TCP, and its pod's port one that a connection of ours has had? Most packets of a server
 * are not, and pay for nothing else. Whatever cannot be told so far is.
 */
UP_INLINE int up_packet_ours(struct __sk_buff *skb, int outgoing)
{
	void *d = UP_FIELD(skb, data), *e = UP_FIELD(skb, data_end);
	struct ethhdr *eth = d;
	struct tcphdr *th;

	if (d + UP_ETH + 40 > e)
		return 1;
	if (eth->h_proto == bpf_htons(0x0800)) {
		struct iphdr *ip = d + UP_ETH;

		if (ip->ihl != 5 || ip->protocol != IPPROTO_TCP)
			return 0;
		th = d + UP_ETH + 20;
	} else if (eth->h_proto == bpf_htons(0x86dd)) {
		struct ipv6hdr *ip = d + UP_ETH;

		if (d + UP_ETH + 60 > e)
			return 1;
		if (ip->nexthdr != IPPROTO_TCP)
			return 0;
		th = d + UP_ETH + 40;
	} else {
		return 0;
	}
	return up_port_ours(outgoing ? th->source : th->dest);
}

/*
 * Reads the headers of an IPv4 or IPv6 TCP packet without fragments or extension headers. outgoing: the source is the pod.
 * Returns 0, or -1 for whatever else it is (none of ours).
 */
UP_INLINE int up_packet_read(struct __sk_buff *skb, struct up_packet *p, int outgoing)
{
	void *d = UP_FIELD(skb, data), *e = UP_FIELD(skb, data_end);
	struct ethhdr *eth = d;
	struct tcphdr *th;
	__u32 len;

	if (d + UP_ETH + 40 > e) {
		if (skb->len < UP_ETH + 40 || bpf_skb_pull_data(skb, skb->len < UP_ETH + 60 ? skb->len : UP_ETH + 60))
			return -1;
		d = UP_FIELD(skb, data);
		e = UP_FIELD(skb, data_end);
		eth = d;
		if (d + UP_ETH + 40 > e)
			return -1;
	}
	if (eth->h_proto == bpf_htons(0x0800)) {
		struct iphdr *ip = d + UP_ETH;

		if (ip->ihl != 5 || ip->protocol != IPPROTO_TCP || (ip->frag_off & bpf_htons(0x3fff)))
			return -1;
		p->v6 = 0;
		p->l4 = UP_ETH + 20;
		p->tos = ip->tos;
		p->t.laddr[0] = p->t.laddr[1] = p->t.raddr[0] = p->t.raddr[1] = 0;
		p->t.laddr[2] = p->t.raddr[2] = bpf_htonl(0xffff);
		p->t.laddr[3] = outgoing ? ip->saddr : ip->daddr;
		p->t.raddr[3] = outgoing ? ip->daddr : ip->saddr;
		len = bpf_ntohs(ip->tot_len) + UP_ETH;
		th = d + UP_ETH + 20;
	} else if (eth->h_proto == bpf_htons(0x86dd)) {
		struct ipv6hdr *ip = d + UP_ETH;

		if (d + UP_ETH + 60 > e) {
			if (skb->len < UP_ETH + 60 || bpf_skb_pull_data(skb, UP_ETH + 60))
				return -1;
			d = UP_FIELD(skb, data);
			e = UP_FIELD(skb, data_end);
			if (d + UP_ETH + 60 > e)
				return -1;
			ip = d + UP_ETH;
		}
		if (ip->nexthdr != IPPROTO_TCP)
			return -1;
		p->v6 = 1;
		p->l4 = UP_ETH + 40;
		p->tos = 0;
		__builtin_memcpy(p->t.laddr, outgoing ? &ip->saddr : &ip->daddr, 16);
		__builtin_memcpy(p->t.raddr, outgoing ? &ip->daddr : &ip->saddr, 16);
		len = skb->len;
		th = d + UP_ETH + 40;
	} else {
		return -1;
	}
	p->back = 0;
	p->left_ns = outgoing ? skb->tstamp : 0;
	p->t.lport = outgoing ? th->source : th->dest;
	p->t.rport = outgoing ? th->dest : th->source;
	p->seq = bpf_ntohl(th->seq);
	p->ack = bpf_ntohl(th->ack_seq);
	p->window = bpf_ntohs(th->window);
	p->fin = th->fin;
	p->syn = th->syn;
	p->rst = th->rst;
	p->ackf = th->ack;
	p->urg = th->urg;
	p->off = p->l4 + th->doff * 4;
	/* a super-packet of more than 64 KiB (BIG TCP) has tot_len 0; a short frame may be padded behind tot_len */
	if (p->v6 || skb->gso_size)
		len = skb->len;
	if (p->off < p->l4 + 20 || len < p->off)
		return -1;
	p->pay = len - p->off;
	p->te = 0;
	if (th->doff >= 8) {
		__be32 *o = (void *)th + 20;

		if ((void *)(o + 3) <= e && o[0] == UP_TS_OPTION)
			p->te = bpf_ntohl(o[2]);
	}
	return 0;
}

UP_INLINE __u32 up_fold32(__u64 s)
{
	s = (s & 0xffffffff) + (s >> 32);
	s = (s & 0xffffffff) + (s >> 32);
	return s;
}
UP_INLINE __u16 up_fold16(__u32 s)
{
	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return s;
}

/* Options in any order, selective acknowledgements included, go through a buffer. */
struct up_options {
	__u8 old[64];
	__u8 new[128];
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct up_options);
} option_buffer SEC(".maps");

struct up_option_walk {
	struct up_options *b;
	__u32 at, ack, tsv, tse;
};

UP_INLINE void up_add32(__u8 *p, __u32 by)
{
	__u32 v = ((__u32)p[0] << 24 | (__u32)p[1] << 16 | (__u32)p[2] << 8 | p[3]) + by;

	p[0] = v >> 24;
	p[1] = v >> 16;
	p[2] = v >> 8;
	p[3] = v;
}

static long up_walk_option(__u32 n, void *state)
{
	struct up_option_walk *w = state;
	struct up_options *b = w->b;
	__u32 at = w->at, i;
	__u8 kind, len;

	(void)n;
	if (at >= 39)
		return 1;
	kind = b->new[at];
	if (!kind)
		return 1;
	if (kind == 1) {
		w->at = at + 1;
		return 0;
	}
	len = b->new[at + 1];
	if (len < 2 || at + len > 40)
		return 1;
	if (kind == 8 && len == 10) {
		up_add32(&b->new[at + 2], w->tsv);
		up_add32(&b->new[at + 6], w->tse);
	} else if (kind == 5) { /* selective acknowledgements (RFC 2018) are numbers like the acknowledgement */
		for (i = 0; i < 4; i++) {
			__u32 k = at + 2 + i * 8;

			if (2 + (i + 1) * 8 > len || k > 72)
				break;
			up_add32(&b->new[k], w->ack);
			up_add32(&b->new[k + 4], w->ack);
		}
	}
	w->at = at + len;
	return 0;
}

struct up_move {
	struct up_shift x;
	struct up_tuple t; /* of the translated packet, as the pod sees it */
	__u32 l4;
	__u8 v6, outgoing, ackf, has_mac;
	__u8 dmac[6];
	__u8 pad[2];
};

static __noinline __s64 up_slow_options(struct __sk_buff *skb, struct up_move *m, __u32 len)
{
	__u32 zero = 0;
	struct up_options *b = bpf_map_lookup_elem(&option_buffer, &zero);
	struct up_option_walk w = {};

	if (!b || !m || len < 1 || len > 40)
		return -1;
	up_count(UP_C_SLOW_OPTIONS);
	__builtin_memset(b, 0, sizeof(*b));
	len--;
	asm volatile("" : "+r"(len));
	len = (len & 63) + 1;
	if (bpf_skb_load_bytes(skb, m->l4 + 20, b->old, len))
		return -1;
	__builtin_memcpy(b->new, b->old, 40);
	w.b = b;
	w.at = UP_ZERO;
	w.ack = m->x.ack;
	w.tsv = m->x.tsv;
	w.tse = m->x.tse;
	bpf_loop(40, up_walk_option, &w, 0);
	if (bpf_skb_store_bytes(skb, m->l4 + 20, b->new, len, 0))
		return -1;
	return bpf_csum_diff((__be32 *)b->old, 40, (__be32 *)b->new, 40, 0);
}

#define UP_DIFF(sum, old, new)                  \
	do {                                    \
		(sum) += (__u32) ~(__u32)(old); \
		(sum) += (__u32)(new);          \
	} while (0)

/*
 * Translates a packet whose headers up_packet_read() accepted. Returns 0, or -1: drop it, for it is half translated.
 * Checksums are kept by differences (RFC 1624): header fields of TCP in one sum, addresses, which are part of the pseudo header
 * that offloads leave in place, in another.
 */
UP_INLINE int up_packet_move(struct __sk_buff *skb, struct up_move *m)
{
	void *d = UP_FIELD(skb, data), *e = UP_FIELD(skb, data_end);
	__be32 *from, *to, *o;
	struct tcphdr *th;
	__u64 sum = 0, pseudo = 0;
	__u32 l4, options, v, i;
	__be16 sport, dport;
	int slow = 0, summed;

	l4 = m->l4 = m->v6 ? UP_ETH + 40 : UP_ETH + 20;
	if (d + l4 + 20 > e)
		return -1;
	th = d + l4;
	options = th->doff * 4 - 20;
	if (options > 40)
		return -1;
	if (options) {
		o = (void *)th + 20;
		if (options == 12 && (void *)(o + 3) <= e && o[0] == UP_TS_OPTION) {
			__be32 tsv = bpf_htonl(bpf_ntohl(o[1]) + m->x.tsv);
			__be32 tse = th->ack ? bpf_htonl(bpf_ntohl(o[2]) + m->x.tse) : o[2];

			UP_DIFF(sum, o[1], tsv);
			UP_DIFF(sum, o[2], tse);
			o[1] = tsv;
			o[2] = tse;
		} else {
			slow = 1;
		}
	}
	if (slow) {
		__s64 r = up_slow_options(skb, m, options);

		if (r < 0)
			return -1;
		sum += (__u32)r;
		d = UP_FIELD(skb, data);
		e = UP_FIELD(skb, data_end);
		if (d + l4 + 20 > e)
			return -1;
		th = d + l4;
	}
	v = bpf_htonl(bpf_ntohl(th->seq) + m->x.seq);
	UP_DIFF(sum, th->seq, v);
	th->seq = v;
	if (th->ack) {
		v = bpf_htonl(bpf_ntohl(th->ack_seq) + m->x.ack);
		UP_DIFF(sum, th->ack_seq, v);
		th->ack_seq = v;
	}
	if (m->x.from != m->x.to) {
		__be16 w;

		v = (__u32)bpf_ntohs(th->window) << (m->x.from & 15) >> (m->x.to & 15);
		if (v > 65535)
			v = 65535;
		w = bpf_htons(v);
		sum += (__u16)~th->window;
		sum += w;
		th->window = w;
	}
	sport = m->outgoing ? m->t.lport : m->t.rport;
	dport = m->outgoing ? m->t.rport : m->t.lport;
	sum += (__u16)~th->source;
	sum += sport;
	th->source = sport;
	sum += (__u16)~th->dest;
	sum += dport;
	th->dest = dport;
	from = m->outgoing ? m->t.laddr : m->t.raddr;
	to = m->outgoing ? m->t.raddr : m->t.laddr;
	if (m->has_mac)
		__builtin_memcpy(d, m->dmac, 6);
	if (m->v6) {
		struct ipv6hdr *ip = d + UP_ETH;
		__be32 *s = (void *)&ip->saddr, *t = (void *)&ip->daddr;

		for (i = 0; i < 4; i++) {
			UP_DIFF(pseudo, s[i], from[i]);
			UP_DIFF(pseudo, t[i], to[i]);
			s[i] = from[i];
			t[i] = to[i];
		}
	} else {
		struct iphdr *ip = d + UP_ETH;
		__be32 s = from[3], t = to[3];

		UP_DIFF(pseudo, ip->saddr, s);
		UP_DIFF(pseudo, ip->daddr, t);
		ip->saddr = s;
		ip->daddr = t;
		ip->check = ~up_fold16((__u32)(__u16)~ip->check + up_fold16(up_fold32(pseudo)));
	}
	summed = up_summed(skb);
	if (summed == UP_SUM_PARTIAL) {
		th->check = up_fold16(up_fold32(pseudo + th->check));
		return 0;
	}
	if (summed == UP_SUM_NONE || summed == UP_SUM_UNNECESSARY) {
		th->check = ~up_fold16(up_fold32(sum + pseudo + (__u16)~th->check));
		return 0;
	}
	if (bpf_l4_csum_replace(skb, l4 + 16, 0, up_fold32(sum), 0))
		return -1;
	if (bpf_l4_csum_replace(skb, l4 + 16, 0, up_fold32(pseudo), BPF_F_PSEUDO_HDR))
		return -1;
	return 0;
}

/* The same where a call does not matter. */
static __noinline int up_packet_move_rarely(struct __sk_buff *skb, struct up_move *m)
{
	return m ? up_packet_move(skb, m) : -1;
}

#endif
