// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * core_test.bpf.c - the core as the verifier accepts it, to be run on given bytes and compared with libcore.so.
 *
 * Never part of a node: it lies in build/test, which the loader does not look into, and has maps of its own. `underpass test
 * equivalence` asks it (nodeagent/core/in_kernel.py), so the wheel ships it.
 * One SEC("syscall") program a question; a question and its answer are one struct up_test in shared memory.
 */
#include "../core/libcore.h"
#include "../core/hosts.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define UP_TEST_DOMAINS (UP_LABELS_MAX + 2)

struct up_test {
	__u32 n;      /* bytes given in the buffer */
	__u32 random; /* for choices */
	__s32 result;
	__u32 n_domains;
	struct up_core_head head;
	struct up_core_line lines[UP_LINES_MAX];
	char domains[UP_TEST_DOMAINS * UP_HOST_MAX];
	struct up_response response;
	struct up_action action;
	__u32 endpoints[2];
	__u32 seq, ack, te, lease;
	__u32 idle;
	/* as bytes: a structure with a lock in it may neither be shared memory nor a sleeping program's, and no lock is taken here */
	__u64 cluster[(sizeof(struct up_cluster) + 7) / 8];
	__u64 client[(sizeof(struct up_conn) + 7) / 8];
	__u64 upstream[(sizeof(struct up_conn) + 7) / 8];
	struct up_shift shift[6];
};

#define UP_TEST_MAP(mapname, mapvalue)             \
	struct {                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);  \
		__uint(max_entries, 1);            \
		__uint(map_flags, BPF_F_MMAPABLE); \
		__type(key, __u32);                \
		__type(value, mapvalue);           \
	} mapname SEC(".maps")

UP_TEST_MAP(test, struct up_test);
UP_TEST_MAP(test_head, struct up_scratch);
UP_TEST_MAP(test_response, struct up_rsp_scratch);
UP_TEST_MAP(test_program, struct up_program);

struct up_copy {
	struct up_test *t;
	struct up_scratch *s;
};

static long up_copy_line(__u32 i, void *state)
{
	struct up_copy *c = state;
	struct up_line *l;
	struct up_core_line *to;

	if (i >= c->s->head.n_lines || i >= UP_LINES_MAX)
		return 1;
	l = &c->s->head.lines[i];
	to = &c->t->lines[i];
	to->name = l->name;
	to->name_len = l->name_len;
	to->value = l->value;
	to->value_len = l->value_len;
	return 0;
}

UP_FUNCTION int up_test_wider(struct up_scratch *s)
{
	return s ? up_host_wider(s) : 0;
}

static long up_copy_domain(__u32 i, void *state)
{
	struct up_copy *c = state;

	if (i >= UP_TEST_DOMAINS)
		return 1;
	c->t->n_domains = i + 1;
	if (!i) {
		__builtin_memcpy(c->t->domains, c->s->key.host, UP_HOST_MAX);
		return 0;
	}
	if (i <= UP_LABELS_MAX && up_test_wider(c->s)) {
		__builtin_memcpy(c->t->domains + i * UP_HOST_MAX, c->s->key.host, UP_HOST_MAX);
		return 0;
	}
	up_host_any(c->s);
	__builtin_memcpy(c->t->domains + i * UP_HOST_MAX, c->s->key.host, UP_HOST_MAX);
	return 1;
}

/* The head in test_head's buffer, and the domains of its host if it is one. */
SEC("syscall")
int up_test_head(void *ctx)
{
	__u32 zero = 0;
	struct up_test *t = bpf_map_lookup_elem(&test, &zero);
	struct up_scratch *s = bpf_map_lookup_elem(&test_head, &zero);
	struct up_copy c = { t, s };

	if (!t || !s)
		return -1;
	t->result = up_head_parse(s, t->n);
	t->head.reason = s->head.reason;
	t->head.len = s->head.len;
	t->head.method = s->head.method;
	t->head.flags = s->head.flags;
	t->head.length = s->head.length;
	t->head.path = s->head.path;
	t->head.path_len = s->head.path_len;
	t->head.target_len = s->head.target_len;
	t->head.host = s->head.host;
	t->head.host_len = s->head.host_len;
	t->head.n_lines = s->head.n_lines;
	t->n_domains = 0;
	bpf_loop(UP_LINES_MAX, up_copy_line, &c, 0);
	return 0;
}

SEC("syscall")
int up_test_domains(void *ctx)
{
	__u32 zero = 0;
	struct up_test *t = bpf_map_lookup_elem(&test, &zero);
	struct up_scratch *s = bpf_map_lookup_elem(&test_head, &zero);
	struct up_copy c = { t, s };

	if (!t || !s)
		return -1;
	s->scan.pos = 0;
	bpf_loop(UP_TEST_DOMAINS, up_copy_domain, &c, 0);
	return 0;
}

/* The route of the head read last, in test_program. */
SEC("syscall")
int up_test_match(void *ctx)
{
	__u32 zero = 0;
	struct up_test *t = bpf_map_lookup_elem(&test, &zero);
	struct up_scratch *s = bpf_map_lookup_elem(&test_head, &zero);
	struct up_program *p = bpf_map_lookup_elem(&test_program, &zero);

	if (!t || !s || !p)
		return -1;
	t->result = up_program_match(p, s);
	return 0;
}

/* The bytes in test_response's buffer, to the response as it stands. */
SEC("syscall")
int up_test_feed(void *ctx)
{
	__u32 zero = 0;
	struct up_test *t = bpf_map_lookup_elem(&test, &zero);
	struct up_rsp_scratch *s = bpf_map_lookup_elem(&test_response, &zero);

	if (!t || !s)
		return -1;
	t->result = up_response_feed(&t->response, s, t->n);
	return 0;
}

/* Weighted choice and the choice of an endpoint. */
SEC("syscall")
int up_test_choose(void *ctx)
{
	__u32 zero = 0;
	struct up_test *t = bpf_map_lookup_elem(&test, &zero);
	struct up_choice choice = {};

	if (!t)
		return -1;
	t->lease = up_action_cluster(&t->action, t->random);
	t->result = up_balance((struct up_cluster *)t->cluster, t->random, &choice);
	t->endpoints[0] = choice.endpoint[0];
	t->endpoints[1] = choice.endpoint[1];
	return 0;
}

/* A lending from home to wire and back, with every shift on the way. */
SEC("syscall")
int up_test_wire(void *ctx)
{
	__u32 zero = 0;
	struct up_test *t = bpf_map_lookup_elem(&test, &zero);
	struct up_conn *c, *u;

	if (!t)
		return -1;
	c = (struct up_conn *)t->client;
	u = (struct up_conn *)t->upstream;
	up_leave_home(c, t->seq, t->ack, t->te);
	up_lend(u, c, t->seq, t->ack, t->te, t->lease);
	t->shift[0] = up_outward(c, u);
	t->shift[1] = up_inward(u);
	t->idle = up_idle(u);
	up_freeze(u, t->seq + t->n, t->ack + t->random, t->te);
	t->shift[2] = up_owner_out(u);
	t->shift[3] = up_owner_in(u);
	up_come_home(c, t->seq + t->n, t->ack + t->random, t->te);
	t->shift[4] = up_home_out(c);
	t->shift[5] = up_home_in(c);
	t->result = up_response_over(&u->rsp, t->ack);
	return 0;
}
