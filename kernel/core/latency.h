/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* latency.h - the slots of a latency histogram. */
#ifndef UNDERPASS_CORE_LATENCY_H
#define UNDERPASS_CORE_LATENCY_H

#include "port.h"

/* The slot of a latency: how many bits us / UP_LATENCY_FIRST_US has, the last slot taking all that has more. */
UP_INLINE __u32 up_latency_slot(__u64 us)
{
	__u64 v = us / UP_LATENCY_FIRST_US;
	__u32 slot = 0;

	if (v >> UP_LATENCY_SLOTS)
		return UP_LATENCY_SLOTS - 1;
	if (v >> 16) {
		slot += 16;
		v >>= 16;
	}
	if (v >> 8) {
		slot += 8;
		v >>= 8;
	}
	if (v >> 4) {
		slot += 4;
		v >>= 4;
	}
	if (v >> 2) {
		slot += 2;
		v >>= 2;
	}
	if (v >> 1) {
		slot += 1;
		v >>= 1;
	}
	slot += (__u32)v;
	return slot < UP_LATENCY_SLOTS ? slot : UP_LATENCY_SLOTS - 1;
}

#endif
