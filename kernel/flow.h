/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* flow.h - what became of a request, counted once: when its response ends, or its wire is given up in the middle of it. */
#ifndef UNDERPASS_FLOW_H
#define UNDERPASS_FLOW_H

#include "core/latency.h"
#include "maps.h"

/*
 * The request under way on `u` has ended with `status`, 0 for an incomplete response. Called without locks, by the one that took
 * UP_CF_ACTIVE away under it: nobody begins another request before that one's packet has passed, or its wire was released.
 */
static __noinline void up_flow_count(struct up_conn *u, __u32 status)
{
	struct up_flow_key key = {};
	struct up_flow_stat *s;
	__u64 us;

	if (!u)
		return;
	key.workload = u->workload;
	key.route = u->route;
	key.endpoint = u->endpoint;
	key.status = status;
	s = bpf_map_lookup_elem(&flow_stats, &key);
	if (!s) {
		static const struct up_flow_stat none;

		if (bpf_map_update_elem(&flow_stats, &key, &none, BPF_NOEXIST)) {
			up_count(UP_C_FLOWS_FULL);
			return;
		}
		s = bpf_map_lookup_elem(&flow_stats, &key);
		if (!s)
			return;
	}
	us = (bpf_ktime_get_ns() - u->start_ns) / 1000;
	if ((__s64)us < 0) /* a segment that TCP paced was stamped ahead of now */
		us = 0;
	s->requests++;
	s->asked += u->asked;
	s->answered += u->answered;
	s->us += us;
	s->slot[up_latency_slot(us)]++;
}

#endif
