// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc_host.bpf.c - the host's end of a pod's interface, which the pod cannot reach: counts what goes in and out. The place of the
 * destination's policy.
 */
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

UP_INLINE struct up_interface_stat *up_interface(__u32 ifindex)
{
	__u32 k;

	for (k = 0; k < UP_INTERFACE_PROBES; k++) {
		__u32 at = (ifindex + k) & (UP_INTERFACES - 1);
		struct up_interface_stat *s = bpf_map_lookup_elem(&interface_stats, &at);

		if (s && s->ifindex == ifindex)
			return s;
	}
	return 0;
}

/* Attached to the host interface's egress: towards the pod. */
SEC("tc")
int up_to_pod(struct __sk_buff *skb)
{
	struct up_interface_stat *s = up_interface(skb->ifindex);

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
	struct up_interface_stat *s = up_interface(skb->ifindex);

	if (s) {
		s->from_pod_packets += skb->gso_segs ?: 1;
		s->from_pod_bytes += skb->len;
	}
	return 0;
}
