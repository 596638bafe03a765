// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
#include "libcore.h"

#include <stdlib.h>
#include <string.h>

#include "hosts.h"
#include "reasons.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT __u32 up_core_abi_version(void)
{
	return UP_ABI_VERSION;
}

EXPORT const char *up_core_reason_name(__u32 reason)
{
	return reason < UP_R_LAST ? up_reason_names[reason] : NULL;
}

EXPORT const char *up_core_counter_name(__u32 counter)
{
	return counter < UP_C_LAST ? up_counter_names[counter] : NULL;
}

EXPORT __u32 up_core_name_hash(const char *name, __u32 len)
{
	__u32 h = UP_HASH_START, i;

	for (i = 0; i < len; i++)
		h = up_hash_step(h, (__u8)name[i]);
	return h;
}

EXPORT struct up_scratch *up_core_scratch_new(void)
{
	return calloc(1, sizeof(struct up_scratch));
}

EXPORT void up_core_scratch_free(struct up_scratch *s)
{
	free(s);
}

EXPORT int up_core_head(struct up_scratch *s, const void *bytes, __u32 n, struct up_core_head *out)
{
	int reason;

	if (n > UP_HEAD_MAX)
		n = UP_HEAD_MAX;
	memcpy(s->buf, bytes, n);
	reason = up_head_parse(s, n);
	out->reason = s->head.reason;
	out->len = s->head.len;
	out->method = s->head.method;
	out->flags = s->head.flags;
	out->length = s->head.length;
	out->path = s->head.path;
	out->path_len = s->head.path_len;
	out->target_len = s->head.target_len;
	out->host = s->head.host;
	out->host_len = s->head.host_len;
	out->n_lines = s->head.n_lines;
	return reason;
}

EXPORT int up_core_line(const struct up_scratch *s, __u32 index, struct up_core_line *out)
{
	if (index >= s->head.n_lines)
		return 0;
	out->name = s->head.lines[index].name;
	out->name_len = s->head.lines[index].name_len;
	out->value = s->head.lines[index].value;
	out->value_len = s->head.lines[index].value_len;
	return 1;
}

EXPORT const char *up_core_host(const struct up_scratch *s)
{
	return s->key.host;
}

EXPORT int up_core_domain(const struct up_scratch *s, __u32 n, char *out)
{
	struct up_scratch wide = *s;
	__u32 i;

	wide.scan.pos = 0;
	for (i = 0; i < n; i++) {
		if (i < UP_LABELS_MAX && up_host_wider(&wide))
			continue;
		if (i + 1 < n)
			return 0;
		up_host_any(&wide);
	}
	memcpy(out, wide.key.host, UP_HOST_MAX);
	return 1;
}

EXPORT int up_core_match(struct up_program *p, struct up_scratch *s)
{
	return up_program_match(p, s);
}

EXPORT __u32 up_core_action_cluster(const struct up_action *a, __u32 random)
{
	return up_action_cluster(a, random);
}

EXPORT int up_core_balance(struct up_cluster *c, __u32 random, __u32 endpoints[2])
{
	struct up_choice choice;
	int reason = up_balance(c, random, &choice);

	endpoints[0] = choice.endpoint[0];
	endpoints[1] = choice.endpoint[1];
	return reason;
}

EXPORT void up_core_response_begin(struct up_response *r, __u32 at, int head)
{
	up_response_begin(r, at, head);
}

EXPORT int up_core_response_feed(struct up_response *r, const void *bytes, __u32 n)
{
	struct up_rsp_scratch s;

	if (n > UP_RSP_HEAD_MAX)
		n = UP_RSP_HEAD_MAX;
	memset(&s, 0, sizeof(s));
	memcpy(s.buf, bytes, n);
	return up_response_feed(r, &s, n);
}

EXPORT int up_core_response_over(const struct up_response *r, __u32 ack)
{
	return up_response_over(r, ack);
}

EXPORT void up_core_response_pass(struct up_response *r, __u32 seen)
{
	up_response_pass(r, seen);
}

EXPORT void up_core_lend(struct up_conn *u, const struct up_conn *c, __u32 seq, __u32 ack, __u32 te, __u32 lease)
{
	up_lend(u, c, seq, ack, te, lease);
}

EXPORT void up_core_freeze(struct up_conn *u, __u32 seq, __u32 ack, __u32 te)
{
	up_freeze(u, seq, ack, te);
}

EXPORT void up_core_leave_home(struct up_conn *c, __u32 seq, __u32 ack, __u32 te)
{
	up_leave_home(c, seq, ack, te);
}

EXPORT void up_core_come_home(struct up_conn *c, __u32 seq, __u32 ack, __u32 te)
{
	up_come_home(c, seq, ack, te);
}

EXPORT int up_core_spent(const struct up_conn *u)
{
	return up_spent(u);
}

EXPORT int up_core_idle(const struct up_conn *u)
{
	return up_idle(u);
}

EXPORT void up_core_shift(const struct up_conn *c, const struct up_conn *u, int which, struct up_shift *out)
{
	switch (which) {
	case 0:
		*out = up_outward(c, u);
		break;
	case 1:
		*out = up_inward(u);
		break;
	case 2:
		*out = up_owner_out(u);
		break;
	case 3:
		*out = up_owner_in(u);
		break;
	case 4:
		*out = up_home_out(c);
		break;
	default:
		*out = up_home_in(c);
	}
}
