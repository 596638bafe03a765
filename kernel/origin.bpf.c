// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * origin.bpf.c - the node's Envoy learns what its clients connected to: SO_ORIGINAL_DST of a socket that it accepted is the
 * service's address and port, as it would be behind a NAT rule.
 *
 * Attached to Envoy's own cgroup. Nothing of the answer is taken from what a workload sends: the client's side was noted by
 * the connect hook of the workload's cgroup and by sockops when the connection stood (`origins`), both of which run in the kernel
 * on the client's own socket. It is taken over into the accepted socket's private storage once, when that one is established,
 * so that a later connection of the same tuple cannot be answered with it, nor an earlier one with that of a later.
 */
#include "maps.h"
#include "tuple.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define UP_SOL_IP 0
#define UP_SOL_IPV6 41
#define UP_SO_ORIGINAL_DST 80 /* IP6T_SO_ORIGINAL_DST, too */
#define UP_AF_INET 2

struct up_sockaddr4 {
	__u16 family;
	__be16 port;
	__u32 addr;
	__u8 zero[8];
};
struct up_sockaddr6 {
	__u16 family;
	__be16 port;
	__u32 flowinfo;
	__u32 addr[4];
	__u32 scope;
};

UP_INLINE int up_is(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* A connection to Envoy stands. A workload that speaks from an address that is not its own is nobody's client. */
static __noinline int up_accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct up_tuple t = {};
	struct up_origin *o, *mine;
	struct up_workload *w;
	__u32 id;

	if (!sk)
		return 0;
	up_tuple_of_peer(ctx, &t);
	o = bpf_map_lookup_elem(&origins, &t);
	if (!o)
		return 0;
	id = o->workload;
	w = bpf_map_lookup_elem(&workloads, &id);
	if (w && w->view && (up_is(w->addr4, t.laddr) || up_is(w->addr6, t.laddr))) {
		mine = bpf_sk_storage_get(&accepted, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (mine)
			*mine = *o;
	}
	bpf_map_delete_elem(&origins, &t);
	return 0;
}

SEC("sockops")
int up_origin_sockops(struct bpf_sock_ops *ctx)
{
	if (ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		up_accepted(ctx, ctx->sk);
	return 1;
}

/* After the kernel's own answer. An optlen of 0 leaves the caller's buffer as it is; returning 0 refuses (EPERM). */
SEC("cgroup/getsockopt")
int up_original_dst(struct bpf_sockopt *ctx)
{
	int v4 = ctx->level == UP_SOL_IP, room = ctx->optlen;
	struct up_sockaddr4 *a4 = ctx->optval;
	struct up_sockaddr6 *a6 = ctx->optval;
	void *end = ctx->optval_end;
	struct bpf_sock *sk = ctx->sk;
	struct up_origin *o;

	ctx->optlen = 0;
	if (ctx->optname != UP_SO_ORIGINAL_DST || (!v4 && ctx->level != UP_SOL_IPV6) || !sk)
		return 1;
	o = bpf_sk_storage_get(&accepted, sk, 0, 0);
	if (!o) /* connection tracking may know of a redirection, but none that we made */
		return 0;
	if (v4 != up_mapped(o->vip))
		return 0;
	if (v4) {
		if (room < (int)sizeof(*a4) || (void *)(a4 + 1) > end)
			return 0;
		__builtin_memset(a4, 0, sizeof(*a4));
		a4->family = UP_AF_INET;
		a4->port = o->vport;
		a4->addr = o->vip[3];
		ctx->optlen = sizeof(*a4);
	} else {
		if (room < (int)sizeof(*a6) || (void *)(a6 + 1) > end)
			return 0;
		__builtin_memset(a6, 0, sizeof(*a6));
		a6->family = UP_AF_INET6;
		a6->port = o->vport;
		a6->addr[0] = o->vip[0];
		a6->addr[1] = o->vip[1];
		a6->addr[2] = o->vip[2];
		a6->addr[3] = o->vip[3];
		ctx->optlen = sizeof(*a6);
	}
	ctx->retval = 0;
	return 1;
}
