/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* turn.h - packets that we answer or shorten ourselves: pure acknowledgements turned around, and the cut before a pipelined head. */
#ifndef UNDERPASS_TURN_H
#define UNDERPASS_TURN_H

#include "packet.h"

/* A packet that is sent back to where it came from. */
struct up_reflection {
	const char *text; /* of a map value of 1,024 bytes */
	__u32 n;	  /* bytes of it that the answer carries, below 1,024 */
	__u32 seq, ack;
	__u32 window;
	__u32 flags; /* of bpf_redirect() */
	__u32 rst;
};

struct up_headers {
	__u8 pad[2]; /* so that the headers behind Ethernet are aligned */
	__u8 b[14 + 40 + 32 + 2];
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct up_headers);
} headers_buffer SEC(".maps");

/* Turns the packet round, with other numbers and another payload. Returns what the program returns. */
static __noinline int up_reflect(struct __sk_buff *skb, struct up_packet *p, struct up_reflection *x)
{
	struct up_headers *reply;
	__u8 *b, *tcp, swap;
	__be32 *o, stamp;
	__u32 head, n, i, whole, zero = 0;
	__u64 pseudo;
	__be16 port;
	int ts;

	reply = bpf_map_lookup_elem(&headers_buffer, &zero);
	if (!p || !x || !reply)
		return UP_TC_SHOT;
	b = reply->b;
	head = p->v6 ? 54 : 34;
	/* the sum of what is added is nobody's to make but the device's */
	if (x->n && !up_checksum_partial(skb))
		return UP_TC_SHOT;
	if (skb->len >= head + 32) {
		if (p->v6 ? bpf_skb_load_bytes(skb, 0, b, 86) : bpf_skb_load_bytes(skb, 0, b, 66))
			return UP_TC_SHOT;
	} else if (p->v6 ? bpf_skb_load_bytes(skb, 0, b, 74) : bpf_skb_load_bytes(skb, 0, b, 54)) {
		return UP_TC_SHOT;
	}
	tcp = p->v6 ? b + 54 : b + 34;
	o = (void *)(tcp + 20);
	ts = skb->len >= head + 32 && tcp[12] >> 4 >= 8 && o[0] == UP_TS_OPTION;
	n = head + (ts ? 32 : 20);
	whole = n + x->n;
	if (skb->len != whole && bpf_skb_change_tail(skb, whole, 0))
		return UP_TC_SHOT;
	for (i = 0; i < 6; i++) {
		swap = b[i];
		b[i] = b[6 + i];
		b[6 + i] = swap;
	}
	port = up_load16(tcp);
	((struct up_u16 *)tcp)->v = up_load16(tcp + 2);
	((struct up_u16 *)(tcp + 2))->v = port;
	((struct up_u32 *)(tcp + 4))->v = bpf_htonl(x->seq);
	((struct up_u32 *)(tcp + 8))->v = bpf_htonl(x->ack);
	tcp[12] = (ts ? 8 : 5) << 4;
	tcp[13] = x->rst ? 0x14 : x->n ? 0x18 : 0x10; /* ACK, with PSH or RST */
	((struct up_u16 *)(tcp + 14))->v = bpf_htons(x->window);
	((struct up_u32 *)(tcp + 16))->v = 0; /* checksum, urgent pointer */
	if (ts) {			      /* our newest stamp is the one that it echoes */
		stamp = o[1];
		o[1] = o[2];
		o[2] = stamp;
	}
	pseudo = bpf_htonl(IPPROTO_TCP) + (__u64)bpf_htonl(whole - head);
	if (p->v6) {
		struct ipv6hdr *ip = (void *)(b + UP_ETH);
		__be32 *s = (void *)&ip->saddr, *d = (void *)&ip->daddr;

		for (i = 0; i < 4; i++) {
			__be32 a = s[i];

			s[i] = d[i];
			d[i] = a;
			pseudo += (__u64)s[i] + d[i];
		}
		ip->payload_len = bpf_htons(whole - head);
		ip->hop_limit = 64;
	} else {
		struct iphdr *ip = (void *)(b + UP_ETH);
		__be32 a = ip->saddr;

		ip->saddr = ip->daddr;
		ip->daddr = a;
		pseudo += (__u64)ip->saddr + ip->daddr;
		ip->tot_len = bpf_htons(whole - UP_ETH);
		ip->ttl = 64;
		ip->check = 0;
		ip->check = ~up_fold16((__u32)bpf_csum_diff(0, 0, (__be32 *)ip, 20, 0));
	}
	if (up_checksum_partial(skb)) {
		((struct up_u16 *)(tcp + 16))->v = up_fold16(up_fold32(pseudo));
	} else {
		__s64 sum = ts ? bpf_csum_diff(0, 0, (__be32 *)tcp, 32, up_fold32(pseudo))
			       : bpf_csum_diff(0, 0, (__be32 *)tcp, 20, up_fold32(pseudo));

		((struct up_u16 *)(tcp + 16))->v = ~up_fold16((__u32)sum);
	}
	if (p->v6 ? (ts ? bpf_skb_store_bytes(skb, 0, b, 86, 0) : bpf_skb_store_bytes(skb, 0, b, 74, 0))
		  : (ts ? bpf_skb_store_bytes(skb, 0, b, 66, 0) : bpf_skb_store_bytes(skb, 0, b, 54, 0)))
		return UP_TC_SHOT;
	if (x->text && x->n) {
		__u32 k = x->n - 1;

		asm volatile("" : "+r"(k));
		k = (k & 1023) + 1;
		if (bpf_skb_store_bytes(skb, n, x->text, k, 0))
			return UP_TC_SHOT;
	}
	skb->mark = UP_MARK_TURNED;
	return bpf_redirect(skb->ifindex, x->flags);
}

/* Answers a packet from outside as the absent client would: an acknowledgement at S, R. */
static __noinline int up_turn(struct __sk_buff *skb, struct up_packet *p, __u32 S, __u32 R)
{
	struct up_reflection x = { 0, 0, S, R, 512, 0, 0 };

	up_count(UP_C_TURNED);
	return up_reflect(skb, p, &x);
}

/*
 * Shortens the packet to its first `keep` bytes of payload; TCP sends the rest again, alone. Only while the checksum is left to
 * the device, whose sum then covers what is there: returns -1 otherwise.
 */
static __noinline int up_cut(struct __sk_buff *skb, struct up_packet *p, __u32 keep)
{
	__u32 whole, old, new;
	void *d, *e;

	/* Trimmed, a super-packet is one no more: what is longer than a segment would be dropped on the way, all of it. */
	if (skb->gso_size && keep > skb->gso_size)
		keep = skb->gso_size;
	whole = p->off + keep;
	if (!up_checksum_partial(skb) || bpf_skb_change_tail(skb, whole, 0))
		return -1;
	d = (void *)(long)skb->data;
	e = (void *)(long)skb->data_end;
	if (p->v6) {
		struct ipv6hdr *ip = d + UP_ETH;

		if ((void *)(ip + 1) > e)
			return -1;
		ip->payload_len = bpf_htons(whole - UP_ETH - 40);
	} else {
		struct iphdr *ip = d + UP_ETH;
		__u16 was, now = bpf_htons(whole - UP_ETH);

		if ((void *)(ip + 1) > e)
			return -1;
		was = ip->tot_len;
		ip->tot_len = now;
		ip->check = ~up_fold16((__u32)(__u16)~ip->check + (__u16)~was + now);
	}
	old = bpf_htonl(p->pay + p->off - p->l4);
	new = bpf_htonl(keep + p->off - p->l4);
	if (bpf_l4_csum_replace(skb, p->l4 + 16, old, new, BPF_F_PSEUDO_HDR | 4))
		return -1;
	if (p->fin) {
		/* a FIN stands behind the bytes that are gone; the sum that the device makes covers the flags as they are then */
		__u8 flags;

		if (bpf_skb_load_bytes(skb, p->l4 + 13, &flags, 1))
			return -1;
		flags &= ~1;
		if (bpf_skb_store_bytes(skb, p->l4 + 13, &flags, 1, 0))
			return -1;
	}
	p->pay = keep;
	p->fin = 0;
	up_count(UP_C_CUT);
	return 0;
}

#endif
