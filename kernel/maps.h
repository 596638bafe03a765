/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * maps.h - the maps of abi.h. Every object declares all that it uses by including this file; LIBBPF_PIN_BY_NAME makes them one
 * and the same map, and lets them outlive the agent.
 */
#ifndef UNDERPASS_MAPS_H
#define UNDERPASS_MAPS_H

#include "core/program.h"
#include "core/wire.h"

#define UP_MAP_ARRAY(mapname, mapvalue, entries)     \
	struct {                                     \
		__uint(type, BPF_MAP_TYPE_ARRAY);    \
		__uint(max_entries, entries);        \
		__uint(pinning, LIBBPF_PIN_BY_NAME); \
		__type(key, __u32);                  \
		__type(value, mapvalue);             \
	} mapname SEC(".maps")
#define UP_MAP_HASH(mapname, maptype, mapkey, mapvalue, entries, flags) \
	struct {                                                        \
		__uint(type, maptype);                                  \
		__uint(max_entries, entries);                           \
		__uint(map_flags, flags);                               \
		__uint(pinning, LIBBPF_PIN_BY_NAME);                    \
		__type(key, mapkey);                                    \
		__type(value, mapvalue);                                \
	} mapname SEC(".maps")

UP_MAP_ARRAY(config, struct up_config, 1);
UP_MAP_ARRAY(workloads, struct up_workload, UP_WORKLOADS);
UP_MAP_ARRAY(tables, struct up_table, UP_TABLES);
UP_MAP_ARRAY(clusters, struct up_cluster, UP_CLUSTERS);
UP_MAP_ARRAY(endpoints, struct up_endpoint, UP_ENDPOINTS);
UP_MAP_ARRAY(endpoint_stats, struct up_endpoint_stat, UP_ENDPOINTS);
UP_MAP_ARRAY(endpoint_runs, struct up_endpoint_run, UP_ENDPOINTS);
UP_MAP_ARRAY(ports, __u32, 65536 / 32);
UP_MAP_HASH(services, BPF_MAP_TYPE_HASH, struct up_service_key, struct up_service, UP_SERVICES, BPF_F_NO_PREALLOC);
UP_MAP_HASH(vhosts, BPF_MAP_TYPE_HASH, struct up_vhost_key, struct up_vhost, UP_VHOSTS, BPF_F_NO_PREALLOC);
UP_MAP_HASH(names, BPF_MAP_TYPE_HASH, struct up_name_key, struct up_name_text, UP_VHOSTS, BPF_F_NO_PREALLOC);
UP_MAP_HASH(conns, BPF_MAP_TYPE_HASH, struct up_tuple, struct up_conn, UP_CONNS, 0);
UP_MAP_HASH(origins, BPF_MAP_TYPE_LRU_HASH, struct up_tuple, struct up_origin, UP_ORIGINS, 0);
UP_MAP_HASH(stocks, BPF_MAP_TYPE_HASH, struct up_stock_key, struct up_stock, UP_STOCKS, BPF_F_NO_PREALLOC);
UP_MAP_HASH(punt_stats, BPF_MAP_TYPE_PERCPU_HASH, struct up_punt_key, __u64, UP_ROUTE_IDS, BPF_F_NO_PREALLOC);
UP_MAP_HASH(flow_stats, BPF_MAP_TYPE_PERCPU_HASH, struct up_flow_key, struct up_flow_stat, UP_FLOWS, BPF_F_NO_PREALLOC);
UP_MAP_HASH(replies, BPF_MAP_TYPE_HASH, __u64, struct up_reply, UP_REPLIES, BPF_F_NO_PREALLOC);
UP_MAP_HASH(reply_stats, BPF_MAP_TYPE_PERCPU_HASH, struct up_punt_key, __u64, UP_ROUTE_IDS, BPF_F_NO_PREALLOC);
UP_MAP_HASH(home_stats, BPF_MAP_TYPE_HASH, __u32, struct up_home_stat, UP_ROUTE_IDS, BPF_F_NO_PREALLOC);
UP_MAP_HASH(home_rules, BPF_MAP_TYPE_HASH, __u64, struct up_home_rule, UP_RULES, BPF_F_NO_PREALLOC);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, UP_PROGRAMS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_ARRAY);
			__uint(max_entries, 1);
			__type(key, __u32);
			__type(value, struct up_program);
		});
} programs SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u64);
	__type(value, struct up_cgroup);
} cgroup_workload SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, int);
	__type(value, struct up_socket);
} sockets SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, int);
	__type(value, struct up_origin);
} accepted SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, UP_EVENTS_BYTES);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, UP_C_LAST);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, UP_ROUTE_IDS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct up_route_stat);
} route_stats SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, UP_INTERFACES);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct up_interface_stat);
} interface_stats SEC(".maps");

UP_INLINE void up_count(__u32 which)
{
	__u64 *v = bpf_map_lookup_elem(&counters, &which);

	if (v)
		(*v)++;
}

/*
 * Local ports that some connection of ours has had since the node came up. Most packets of a server belong to ports that none
 * ever had, and need no look-up in conns. The bits are never cleared: they only save time.
 */
UP_INLINE void up_port_note(__be16 port)
{
	__u32 at = port >> 5, *word = bpf_map_lookup_elem(&ports, &at);

	if (word)
		__sync_fetch_and_or(word, 1u << (port & 31));
}
UP_INLINE int up_port_ours(__be16 port)
{
	__u32 at = port >> 5, *word = bpf_map_lookup_elem(&ports, &at);

	return word && (*word >> (port & 31) & 1);
}

UP_INLINE void up_count_punt(__u32 route, __u32 reason)
{
	struct up_punt_key key = { route, reason };
	__u64 one = 1, *v = bpf_map_lookup_elem(&punt_stats, &key);

	if (v)
		(*v)++;
	else
		bpf_map_update_elem(&punt_stats, &key, &one, BPF_NOEXIST);
	up_count(UP_C_HOME);
}

/* Active requests and all requests of an endpoint are neighbours, so that one addition counts both. */
UP_INLINE void up_asked(__u32 endpoint)
{
	struct up_endpoint_stat *s = bpf_map_lookup_elem(&endpoint_stats, &endpoint);

	if (s)
		__sync_fetch_and_add((__u64 *)s, 1 | 1ULL << 32);
}
UP_INLINE void up_answered(__u32 endpoint, int error)
{
	struct up_endpoint_stat *s = bpf_map_lookup_elem(&endpoint_stats, &endpoint);

	if (!s)
		return;
	__sync_fetch_and_add(&s->active, -1);
	if (error)
		__sync_fetch_and_add(&s->errors, 1);
}

UP_INLINE void up_send_event(__u32 type, __u32 workload, __u32 endpoint, __u32 cluster, __u64 cookie,
			     const struct up_tuple *t)
{
	struct up_event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		up_count(UP_C_EVENTS_LOST);
		return;
	}
	e->type = type;
	e->workload = workload;
	e->endpoint = endpoint;
	e->cluster = cluster;
	e->cookie = cookie;
	e->pad = 0;
	if (t)
		e->tuple = *t;
	else
		__builtin_memset(&e->tuple, 0, sizeof(e->tuple));
	bpf_ringbuf_submit(e, 0);
}

#endif
