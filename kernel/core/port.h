/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * port.h - what the core needs of its surroundings, for its two compilers: the BPF target and the native one.
 *
 * The core is header functions over plain structs and bounded buffers. It calls no helper but the loop below, so that the same
 * lines run in the kernel, in libcore.so and under a fuzzer.
 */
#ifndef UNDERPASS_CORE_PORT_H
#define UNDERPASS_CORE_PORT_H

#ifdef __BPF__
#define config vmlinux_config /* a type of the kernel's has the name of one of our maps */
#include "vmlinux.h"
#undef config
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
/*
 * bpf_for needs 6.4, and a plain loop over a head is too large for the verifier, so loops are bpf_loop (5.17) with static
 * callbacks. The verifier of 6.1 walks a callback once, with the state as it stands before the loop, and deletes branches that
 * this state cannot reach: loop state must start from a value that it does not know. Hence up_zero, which nobody writes and which
 * is not const: what is in .rodata, the verifier knows.
 */
static volatile __u32 up_zero;
#define UP_ZERO up_zero
#define up_loop(n, callback, state) bpf_loop(n, callback, state, 0)
/* Keeps a bound where the compiler would prove it away but the verifier cannot follow. mask: a power of two minus one. */
#define up_bound(v, mask)                     \
	({                                    \
		__u32 __v = (v);              \
		asm volatile("" : "+r"(__v)); \
		__v &= (mask);                \
		__v;                          \
	})
#define UP_INLINE static __always_inline
#define UP_FUNCTION __attribute__((noinline))
#else
#include <stdint.h>
#include <stddef.h>
#include <linux/types.h>
#define UP_ZERO 0u
#define UP_INLINE static inline __attribute__((always_inline))
#define UP_FUNCTION __attribute__((noinline, visibility("default")))
#define up_bound(v, mask) ((v) & (mask))
typedef long (*up_callback)(__u32 i, void *state);
static inline long up_run(__u32 n, up_callback callback, void *state)
{
	__u32 i;

	for (i = 0; i < n; i++)
		if (callback(i, state))
			return i + 1;
	return n;
}
#define up_loop(n, callback, state) up_run(n, callback, state)
#endif

#ifndef __packed
#define __packed __attribute__((packed))
#endif

#include "../include/abi.h"

/* a is behind b in sequence space (RFC 9293 section 3.4) */
UP_INLINE int up_after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}
UP_INLINE int up_before(__u32 a, __u32 b)
{
	return (__s32)(a - b) < 0;
}

#endif
