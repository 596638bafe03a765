/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * libcore.h - the core as a shared library: what home, `underpass explain`, the tests, the fuzzers and the simulator call.
 * Every function is the very code that runs in the kernel; none of them allocates but up_core_scratch_new(), none keeps state.
 */
#ifndef UNDERPASS_LIBCORE_H
#define UNDERPASS_LIBCORE_H

#include "balance.h"
#include "program.h"
#include "wire.h"

/* What up_head_parse() found, without the lines. Offsets count from the head's first byte. */
struct up_core_head {
	__u32 reason, len, method, flags;
	__u64 length;
	__u32 path, path_len, target_len, host, host_len, n_lines;
};
struct up_core_line {
	__u32 name, name_len, value, value_len;
};

__u32 up_core_abi_version(void);
/* NULL for a number out of range; the counts are UP_R_LAST and UP_C_LAST. */
const char *up_core_reason_name(__u32 reason);
const char *up_core_counter_name(__u32 counter);
__u32 up_core_name_hash(const char *lower_case_name, __u32 len);

struct up_scratch *up_core_scratch_new(void);
void up_core_scratch_free(struct up_scratch *s);
/* Copies at most UP_HEAD_MAX bytes and parses them. Returns an up_reason; *out is filled in any case. */
int up_core_head(struct up_scratch *s, const void *bytes, __u32 n, struct up_core_head *out);
int up_core_line(const struct up_scratch *s, __u32 index, struct up_core_line *out);
/* The key of the virtual host, UP_HOST_MAX bytes padded with NUL, of the last head that parsed. */
const char *up_core_host(const struct up_scratch *s);
/* The n-th domain to look up for that host: 0 the host itself, then `*.` and every suffix behind a dot, longest first, at last
 * `*`. Returns 0 when there is no n-th. out: UP_HOST_MAX bytes. */
int up_core_domain(const struct up_scratch *s, __u32 n, char *out);
/* Index into p->routes, or minus an up_reason. */
int up_core_match(struct up_program *p, struct up_scratch *s);
__u32 up_core_action_cluster(const struct up_action *a, __u32 random);
/* Returns an up_reason and up to two endpoint ids (see up_choice). Counts c->turn. */
int up_core_balance(struct up_cluster *c, __u32 random, __u32 endpoints[2]);

void up_core_response_begin(struct up_response *r, __u32 at, int head);
/* Feeds the bytes at r->next. Returns how many of them were taken; see up_response_feed(). n: at most UP_RSP_HEAD_MAX at once. */
int up_core_response_feed(struct up_response *r, const void *bytes, __u32 n);
int up_core_response_over(const struct up_response *r, __u32 ack);
void up_core_response_pass(struct up_response *r, __u32 seen);

void up_core_lend(struct up_conn *u, const struct up_conn *c, __u32 seq, __u32 ack, __u32 te, __u32 lease);
void up_core_freeze(struct up_conn *u, __u32 seq, __u32 ack, __u32 te);
void up_core_leave_home(struct up_conn *c, __u32 seq, __u32 ack, __u32 te);
void up_core_come_home(struct up_conn *c, __u32 seq, __u32 ack, __u32 te);
int up_core_idle(const struct up_conn *u);
int up_core_spent(const struct up_conn *u);
void up_core_shift(const struct up_conn *c, const struct up_conn *u, int which, struct up_shift *out);

#endif
