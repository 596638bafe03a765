// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc_host.bpf.c - the host's end of a pod's interface, which the pod cannot reach: counts what goes in and out. The place of the
 * destination's policy.
 */
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Attached to the host interface's egress: towards the pod. */
SEC("tc")
int up_to_pod(struct __sk_buff *skb)
{
	__u32 key = skb->ifindex;
	struct up_interface_stat *s = bpf_map_lookup_elem(&interface_stats, &key);

	if (s) {
		s->to_pod_packets += skb->gso_segs ?: 1;
		s->to_pod_bytes += skb->len;
	}
	return 0;
}

/* Attached to the host interface's ingress: from the pod. */
SEC("tc")
int up_from_pod(struct __sk_buff *skb)
{
	__u32 key = skb->ifindex;
	struct up_interface_stat *s = bpf_map_lookup_elem(&interface_stats, &key);

	if (s) {
		s->from_pod_packets += skb->gso_segs ?: 1;
		s->from_pod_bytes += skb->len;
	}
	return 0;
}
