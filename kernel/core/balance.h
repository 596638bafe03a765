/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* balance.h - the choice of an endpoint among a cluster's slots. */
#ifndef UNDERPASS_CORE_BALANCE_H
#define UNDERPASS_CORE_BALANCE_H

#include "port.h"

struct up_choice {
	__u32 endpoint[2]; /* 0: none; least request compares the two, the others use the first */
};

/*
 * Draws the slots. The caller holds c->lock where other CPUs may write (round robin counts in c->turn). random: any 32-bit
 * number. Returns 0, or UP_R_NO_CLUSTER, UP_R_NO_ENDPOINT. Endpoint ids start at 1.
 */
UP_INLINE __u32 up_balance(struct up_cluster *c, __u32 random, struct up_choice *out)
{
	__u32 n = c->n, i, j;

	out->endpoint[0] = out->endpoint[1] = 0;
	if (!c->live)
		return UP_R_NO_CLUSTER;
	if (!n || n > UP_CLUSTER_SLOTS)
		return UP_R_NO_ENDPOINT;
	if (c->lb == UP_LB_ROUND_ROBIN) {
		i = c->turn;
		if (i >= n)
			i = 0;
		c->turn = i + 1;
	} else {
		i = (__u32)(((__u64)random * n) >> 32);
	}
	out->endpoint[0] = c->slot[up_bound(i, UP_CLUSTER_SLOTS - 1)];
	if (c->lb == UP_LB_LEAST_REQUEST) {
		random = random * 2654435761u + 40503u;
		j = (__u32)(((__u64)random * n) >> 32);
		out->endpoint[1] = c->slot[up_bound(j, UP_CLUSTER_SLOTS - 1)];
	}
	return UP_OK;
}

#endif
