/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * context.h - the kernel's own sk_buff behind a program's __sk_buff: what the context does not tell.
 *
 * Kernels from 6.2 on hand it out for nothing (bpf_cast_to_kern_ctx(), bpf_rdonly_cast()); before, each field costs a helper call.
 * The object is built for both, and the agent takes the first that loads: UP_NO_KERNEL_CONTEXT is the older one.
 */
#ifndef UNDERPASS_CONTEXT_H
#define UNDERPASS_CONTEXT_H

#include <bpf/bpf_core_read.h>

#include "core/port.h"

#define UP_SUM_NONE 0	     /* in the packet, to be kept right */
#define UP_SUM_UNNECESSARY 1 /* the same, found right by the device */
#define UP_SUM_COMPLETE 2    /* the device has summed the whole packet */
#define UP_SUM_PARTIAL 3     /* the pseudo header's only; the device, or nobody on a virtual one, does the rest */
#define UP_SUM_UNKNOWN 4

#ifndef UP_NO_KERNEL_CONTEXT
extern void *bpf_cast_to_kern_ctx(void *obj) __ksym;
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym;

/* The state of the checksum: UP_SUM_*, UP_SUM_UNKNOWN where a helper must find it out. */
UP_INLINE int up_summed(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);

	return BPF_CORE_READ_BITFIELD(k, ip_summed);
}

UP_INLINE int up_checksum_partial(struct __sk_buff *skb)
{
	return up_summed(skb) == UP_SUM_PARTIAL;
}

/* Whether the socket knows that all it sent before `seq` has arrived. An acknowledgement may have passed ingress, and wait for the
 * application to give the socket's lock back. */
UP_INLINE int up_settled(struct __sk_buff *skb, __u32 seq)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct sock *sk = k->sk;
	struct tcp_sock *tp;

	if (!sk || sk->sk_protocol != IPPROTO_TCP || sk->sk_type != SOCK_STREAM)
		return 1;
	tp = bpf_rdonly_cast(sk, bpf_core_type_id_kernel(struct tcp_sock));
	return tp->snd_una == seq;
}
#else
UP_INLINE int up_summed(struct __sk_buff *skb)
{
	(void)skb;
	return UP_SUM_UNKNOWN;
}

UP_INLINE int up_checksum_partial(struct __sk_buff *skb)
{
	struct sk_buff *k = (void *)skb;

	return BPF_CORE_READ_BITFIELD_PROBED(k, ip_summed) == UP_SUM_PARTIAL;
}

UP_INLINE int up_settled(struct __sk_buff *skb, __u32 seq)
{
	struct bpf_sock *sk = skb->sk;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;

	return !tp || tp->snd_una == seq;
}
#endif

#endif
