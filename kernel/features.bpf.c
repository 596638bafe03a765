// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * features.bpf.c - the smallest programs that do what the data path does, to find out by trying whether a kernel can. Never part of
 * the data path: nodeagent/node/probes.py loads them one by one, attaches them to a cgroup and a namespace of their own, and
 * reads what they saw out of `seen`.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Slots of `seen`; nodeagent/node/probes.py has the same numbers. */
#define SAW_CONNECT 0	  /* the connect hook ran on the address to be rewritten */
#define SAW_GETPEERNAME 1 /* getpeername found the socket's tag */
#define SAW_ESTABLISHED 2 /* sockops found the tag at ESTABLISHED */
#define SAW_OFFSET 3	  /* sockops could read tcp_sock (1 + tsoffset) */
#define SAW_EGRESS 4	  /* packets at egress of lo */
#define SAW_SUM 5	  /* 1 + ip_summed of the last one */
#define SAW_SOCKET 6	  /* packets at egress whose socket's tcp_sock could be read */
#define SAW_INGRESS 7	  /* packets at ingress */
#define SAW_LAST 8

#define REFUSED bpf_htonl(0x7f00004d)	/* 127.0.0.77 */
#define REWRITTEN bpf_htonl(0x7f00004e) /* 127.0.0.78 */
#define INSTEAD bpf_htonl(0x7f000001)	/* 127.0.0.1 */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SAW_LAST);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} tags SEC(".maps");
struct locked {
	struct bpf_spin_lock lock;
	__u32 value;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct locked);
} cell SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");
static __always_inline void saw(__u32 what, __u64 value)
{
	__u64 *slot = bpf_map_lookup_elem(&seen, &what);

	if (slot)
		*slot += value;
}

SEC("cgroup/connect4") int ft_connect4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u32 *tag;

	if (ctx->user_ip4 == REFUSED) {
		bpf_set_retval(-111);
		return 0;
	}
	if (ctx->user_ip4 != REWRITTEN || !sk)
		return 1;
	tag = bpf_sk_storage_get(&tags, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (tag)
		*tag = REWRITTEN;
	ctx->user_ip4 = INSTEAD;
	saw(SAW_CONNECT, 1);
	return 1;
}

SEC("cgroup/getpeername4") int ft_getpeername4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u32 *tag = sk ? bpf_sk_storage_get(&tags, sk, 0, 0) : 0;

	if (tag) {
		ctx->user_ip4 = *tag;
		saw(SAW_GETPEERNAME, 1);
	}
	return 1;
}

SEC("sockops") int ft_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct tcp_sock *tp;
	__u32 *tag;

	if (ctx->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB || !sk)
		return 1;
	tag = bpf_sk_storage_get(&tags, sk, 0, 0);
	if (!tag)
		return 1;
	saw(SAW_ESTABLISHED, 1);
	tp = bpf_skc_to_tcp_sock(sk);
	if (tp)
		saw(SAW_OFFSET, 1 + (__u64)tp->tsoffset);
	return 1;
}

SEC("tc") int ft_egress(struct __sk_buff *skb)
{
	struct sk_buff *k = (void *)skb;
	__u32 slot = SAW_SUM;
	__u64 *sum = bpf_map_lookup_elem(&seen, &slot);
	struct bpf_sock *sk = skb->sk;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;

	if (sum)
		*sum = 1 + BPF_CORE_READ_BITFIELD_PROBED(k, ip_summed);
	if (tp && tp->snd_nxt - tp->snd_una < 1u << 31)
		saw(SAW_SOCKET, 1);
	saw(SAW_EGRESS, 1);
	return -1; /* TC_ACT_UNSPEC: the next program, if any, decides */
}

SEC("tc") int ft_ingress(struct __sk_buff *skb)
{
	saw(SAW_INGRESS, 1);
	return -1;
}

/* Returns 1 + what it found under the lock, as home's requests do (control.bpf.c). */
SEC("tc") int ft_locked(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct locked *found, fresh = {};
	int value;

	bpf_map_update_elem(&cell, &key, &fresh, BPF_ANY);
	found = bpf_map_lookup_elem(&cell, &key);
	if (!found)
		return 0;
	bpf_spin_lock(&found->lock);
	found->value += 6;
	value = 1 + found->value;
	bpf_spin_unlock(&found->lock);
	return value;
}

static int step(__u32 index, void *state)
{
	*(__u32 *)state += index;
	return 0;
}

static volatile __u32 zero;

/* 0 + 1 + ... + 7 = 28; the sum starts unknown, see kernel/core/port.h. */
SEC("tc") int ft_loop(struct __sk_buff *skb)
{
	__u32 sum = zero;

	bpf_loop(8, step, &sum, 0);
	return sum;
}

/* A verifier that walks the callback once, with the state before the loop, takes this sum for 0 and says nothing. */
SEC("tc") int ft_loop_known(struct __sk_buff *skb)
{
	__u32 sum = 0;

	bpf_loop(8, step, &sum, 0);
	return sum ? sum : 1;
}

SEC("tc") int ft_ring(struct __sk_buff *skb)
{
	__u32 *record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);

	if (!record)
		return 0;
	*record = 0x46656174;
	bpf_ringbuf_submit(record, 0);
	return 1;
}

SEC("syscall") int ft_syscall(__u32 *ctx)
{
	return *ctx + 1;
}
