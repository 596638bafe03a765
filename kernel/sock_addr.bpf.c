// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * sock_addr.bpf.c - where a connection goes: connect() to a service of the workload's view becomes one to the home peer (HTTP) or
 * to an endpoint (everything else), and getpeername() keeps answering with what the application asked for.
 *
 * Attached to the cgroup of each workload, so an unenrolled process never pays. An AF_INET6 socket that speaks IPv4 runs the v6
 * hooks with a mapped address; keys are mapped anyhow.
 */
#include "core/balance.h"
#include "maps.h"
#include "tuple.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define UP_ALLOW 1
#define UP_DENY 0
#define UP_ECONNREFUSED 111

struct up_peer {
	__u32 addr[4];
	__be16 port;
};

/* An endpoint of a service that is not HTTP, chosen once for the connection. */
static __noinline int up_pick_tcp(struct up_action *a, struct up_peer *to)
{
	struct up_choice choice = {};
	struct up_cluster *k;
	struct up_endpoint *e;
	__u32 id, reason, random = bpf_get_prandom_u32();

	if (!a || !to || a->kind != UP_ACTION_CLUSTERS)
		return -1;
	id = up_action_cluster(a, random);
	k = bpf_map_lookup_elem(&clusters, &id);
	if (!id || !k)
		return -1;
	random = bpf_get_prandom_u32();
	bpf_spin_lock(&k->lock);
	reason = up_balance(k, random, &choice);
	bpf_spin_unlock(&k->lock);
	if (reason)
		return -1;
	id = choice.endpoint[0];
	if (choice.endpoint[1]) {
		struct up_endpoint_stat *x = bpf_map_lookup_elem(&endpoint_stats, &choice.endpoint[0]);
		struct up_endpoint_stat *y = bpf_map_lookup_elem(&endpoint_stats, &choice.endpoint[1]);

		if (x && y && y->requests < x->requests)
			id = choice.endpoint[1];
	}
	e = bpf_map_lookup_elem(&endpoints, &id);
	if (!e || !e->live)
		return -1;
	__builtin_memcpy(to->addr, e->addr, 16);
	to->port = e->port;
	{
		struct up_endpoint_stat *s = bpf_map_lookup_elem(&endpoint_stats, &id);

		if (s)
			__sync_fetch_and_add(&s->requests, 1);
	}
	return 0;
}

/*
 * Where a connection to `to` shall go. Returns UP_ALLOW with *to rewritten or untouched, or UP_DENY: nothing serves it, and the
 * application gets ECONNREFUSED as from a closed port.
 */
static __noinline int up_connect(struct bpf_sock_addr *ctx, struct up_peer *to, __u8 family)
{
	struct up_cgroup *g = bpf_get_local_storage(&cgroup_workload, 0);
	struct up_service_key key = {};
	struct up_service *s;
	struct up_workload *w;
	struct up_config *cfg;
	struct up_address *home;
	struct up_socket *tag;
	struct bpf_sock *sk = ctx->sk;
	__u32 id, zero = 0;
	__be16 port;

	if (!to || !g || !sk)
		return UP_ALLOW;
	id = g->workload;
	w = bpf_map_lookup_elem(&workloads, &id);
	if (!id || !w || !w->view)
		return UP_ALLOW;
	key.view = w->view;
	key.port = to->port;
	key.protocol = IPPROTO_TCP;
	__builtin_memcpy(key.addr, to->addr, 16);
	s = bpf_map_lookup_elem(&services, &key);
	if (!s || s->kind == UP_SERVICE_NONE)
		return UP_ALLOW;
	tag = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!tag)
		return UP_DENY;
	tag->workload = id;
	__builtin_memcpy(tag->vip, to->addr, 16);
	tag->vport = to->port;
	tag->family = family;
	if (s->kind == UP_SERVICE_HTTP) {
		cfg = bpf_map_lookup_elem(&config, &zero);
		if (!cfg)
			return UP_DENY;
		home = up_mapped(to->addr) ? &cfg->home4 : &cfg->home6;
		if (!home->family)
			goto refuse;
		port = home->port;
		if (w->flags & UP_WF_APART)
			port = up_mapped(to->addr) ? cfg->own4 : cfg->own6;
		if (!port)
			goto refuse;
		tag->kind = UP_KIND_CLIENT;
		tag->table = s->table;
		__builtin_memcpy(to->addr, home->addr, 16);
		to->port = port;
		up_count(UP_C_CONNECT_HTTP);
		return UP_ALLOW;
	}
	tag->kind = 0;
	if (s->kind != UP_SERVICE_TCP || up_pick_tcp(&s->tcp, to))
		goto refuse;
	up_count(UP_C_CONNECT_TCP);
	return UP_ALLOW;
refuse:
	tag->vport = 0;
	up_count(UP_C_CONNECT_REFUSED);
	bpf_set_retval(-UP_ECONNREFUSED);
	return UP_DENY;
}

SEC("cgroup/connect4")
int up_connect4(struct bpf_sock_addr *ctx)
{
	struct up_peer to = {};
	int r;

	if (ctx->protocol != IPPROTO_TCP)
		return UP_ALLOW;
	to.addr[2] = bpf_htonl(0xffff);
	to.addr[3] = ctx->user_ip4;
	to.port = ctx->user_port;
	r = up_connect(ctx, &to, 4);
	if (r == UP_ALLOW) {
		if (!up_mapped(to.addr)) /* an IPv4 socket cannot reach an IPv6 endpoint */
			return UP_DENY;
		ctx->user_ip4 = to.addr[3];
		ctx->user_port = to.port;
	}
	return r;
}

SEC("cgroup/connect6")
int up_connect6(struct bpf_sock_addr *ctx)
{
	struct up_peer to = {};
	int r;

	if (ctx->protocol != IPPROTO_TCP)
		return UP_ALLOW;
	to.addr[0] = ctx->user_ip6[0];
	to.addr[1] = ctx->user_ip6[1];
	to.addr[2] = ctx->user_ip6[2];
	to.addr[3] = ctx->user_ip6[3];
	to.port = ctx->user_port;
	r = up_connect(ctx, &to, 6);
	if (r == UP_ALLOW) {
		ctx->user_ip6[0] = to.addr[0];
		ctx->user_ip6[1] = to.addr[1];
		ctx->user_ip6[2] = to.addr[2];
		ctx->user_ip6[3] = to.addr[3];
		ctx->user_port = to.port;
	}
	return r;
}

SEC("cgroup/getpeername4")
int up_getpeername4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct up_socket *tag;

	if (!sk)
		return UP_ALLOW;
	tag = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (tag && tag->vport && tag->kind != UP_KIND_UPSTREAM) {
		ctx->user_ip4 = tag->vip[3];
		ctx->user_port = tag->vport;
	}
	return UP_ALLOW;
}

SEC("cgroup/getpeername6")
int up_getpeername6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct up_socket *tag;

	if (!sk)
		return UP_ALLOW;
	tag = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (tag && tag->vport && tag->kind != UP_KIND_UPSTREAM) {
		ctx->user_ip6[0] = tag->vip[0];
		ctx->user_ip6[1] = tag->vip[1];
		ctx->user_ip6[2] = tag->vip[2];
		ctx->user_ip6[3] = tag->vip[3];
		ctx->user_port = tag->vport;
	}
	return UP_ALLOW;
}
