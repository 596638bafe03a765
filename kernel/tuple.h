/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tuple.h - the tuple of a socket in a sockops program, IPv4 as mapped addresses. */
#ifndef UNDERPASS_TUPLE_H
#define UNDERPASS_TUPLE_H

#include "include/abi.h"

#define UP_AF_INET6 10

/* A context may only be read at fixed offsets: the compiler must not join the loads of two branches. */
#define UP_CTX(field)                         \
	({                                    \
		__u32 __v = ctx->field;       \
		asm volatile("" : "+r"(__v)); \
		__v;                          \
	})

UP_INLINE int up_mapped(const __u32 *a)
{
	return !a[0] && !a[1] && a[2] == bpf_htonl(0xffff);
}

UP_INLINE void up_tuple_of(struct bpf_sock_ops *ctx, struct up_tuple *t)
{
	if (ctx->family == UP_AF_INET6) {
		t->laddr[0] = UP_CTX(local_ip6[0]);
		t->laddr[1] = UP_CTX(local_ip6[1]);
		t->laddr[2] = UP_CTX(local_ip6[2]);
		t->laddr[3] = UP_CTX(local_ip6[3]);
		t->raddr[0] = UP_CTX(remote_ip6[0]);
		t->raddr[1] = UP_CTX(remote_ip6[1]);
		t->raddr[2] = UP_CTX(remote_ip6[2]);
		t->raddr[3] = UP_CTX(remote_ip6[3]);
	} else {
		t->laddr[0] = t->laddr[1] = t->raddr[0] = t->raddr[1] = 0;
		t->laddr[2] = t->raddr[2] = bpf_htonl(0xffff);
		t->laddr[3] = UP_CTX(local_ip4);
		t->raddr[3] = UP_CTX(remote_ip4);
	}
	t->lport = bpf_htons(ctx->local_port);
	t->rport = bpf_htons(bpf_ntohl(ctx->remote_port));
}

/* The same as the peer sees it. */
UP_INLINE void up_tuple_of_peer(struct bpf_sock_ops *ctx, struct up_tuple *t)
{
	struct up_tuple own = {};

	up_tuple_of(ctx, &own);
	__builtin_memcpy(t->laddr, own.raddr, 16);
	__builtin_memcpy(t->raddr, own.laddr, 16);
	t->lport = own.rport;
	t->rport = own.lport;
}

#endif
