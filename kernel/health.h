/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * health.h - how an endpoint answers, one request after the other: what the agent takes it out of its clusters for.
 *
 * The agent looks now and then, so the longest row since it last looked is kept beside the one that is under way. Rows are of the
 * node: all its workloads' requests, by whatever cluster, on lent wires and through home. Two CPUs at once may lose a step of the
 * peak, and make it up with the next error.
 */
#ifndef UNDERPASS_HEALTH_H
#define UNDERPASS_HEALTH_H

#include "maps.h"

/* A request was answered with `status`; 0: not at all. Verified by itself, so that it costs its callers nothing. */
UP_FUNCTION int up_health(__u32 endpoint, __u32 status)
{
	struct up_endpoint_run *r = bpf_map_lookup_elem(&endpoint_runs, &endpoint);
	__u32 row;

	if (!r)
		return 0;
	if (status && status < 500) {
		if (r->errors) { /* most endpoints never fail: their line stays clean and shared */
			r->errors = 0;
			r->gateway = 0;
		}
		return 0;
	}
	row = __sync_fetch_and_add(&r->errors, 1) + 1;
	if (row > r->errors_peak)
		r->errors_peak = row;
	if (!status || (status >= 502 && status <= 504)) {
		row = __sync_fetch_and_add(&r->gateway, 1) + 1;
		if (row > r->gateway_peak)
			r->gateway_peak = row;
	} else {
		r->gateway = 0;
	}
	return 0;
}

#endif
