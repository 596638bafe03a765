/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * program.h - evaluates a route program on a parsed head: path and header values walk their automata, the first route of the
 * path's set whose predicates hold wins (abi.h, "the route program"). Cost grows with the head, not with the number of routes.
 */
#ifndef UNDERPASS_CORE_PROGRAM_H
#define UNDERPASS_CORE_PROGRAM_H

#include "head.h"

struct up_walk {
	struct up_program *p;
	struct up_scratch *s;
	__u32 pos, end, state;
};

#define UP_WALK_STEP 16

static long up_walk_bytes(__u32 i, void *state)
{
	struct up_walk *w = state;
	struct up_program *p = w->p;
	struct up_scratch *s = w->s;
	__u32 pos = w->pos, end = w->end, q = w->state, k;

	(void)i;
	for (k = 0; k < UP_WALK_STEP; k++) {
		__u32 cell;

		if (pos >= end) {
			w->state = q;
			return 1;
		}
		q = up_bound(q, UP_STATES - 1);
		cell = up_bound(p->states[q].base + p->class_of[s->buf[UP_BUF(pos)]], UP_CELLS - 1);
		q = p->cells[cell].check == q ? p->cells[cell].next : p->states[q].fallback;
		pos++;
	}
	w->pos = pos;
	w->state = q;
	return 0;
}

/* The accept index of the state that s->buf[at .. at + len) leads to. */
UP_INLINE __u32 up_walk(struct up_program *p, struct up_scratch *s, __u32 start, __u32 at, __u32 len)
{
	struct up_walk w = {};

	w.p = p;
	w.s = s;
	w.pos = at + UP_ZERO;
	w.end = at + len + UP_ZERO;
	w.state = start + UP_ZERO;
	up_loop(UP_HEAD_MAX / UP_WALK_STEP + 1, up_walk_bytes, &w);
	return p->states[up_bound(w.state, UP_STATES - 1)].accept;
}

struct up_find {
	struct up_program *p;
	struct up_scratch *s;
	__u32 at, n;  /* candidates */
	__u32 method; /* as a bit */
	__u32 reason;
	__u32 route; /* found: index + 1 */
	__u32 seen;  /* headers met, as bits over headers[] */
	__u64 bits;  /* true predicates */
};

/* Is this line one of the program's headers? Then its value's predicates join the set. */
static long up_find_header(__u32 i, void *state)
{
	struct up_find *f = state;
	struct up_program *p = f->p;
	struct up_scratch *s = f->s;
	struct up_line *l;
	__u32 k, j, hash, len;

	if (i >= s->head.n_lines || i >= UP_LINES_MAX)
		return 1;
	l = &s->head.lines[i];
	hash = l->hash;
	len = l->name_len;
	for (k = 0; k < UP_HEADERS; k++) {
		struct up_header *h = &p->headers[k];
		const __u8 *b = s->buf + UP_BUF(l->name);
		__u32 accept;

		if (k >= p->n_headers)
			break;
		if (h->hash != hash || h->len != len)
			continue;
		for (j = 0; j < UP_NAME_MAX; j++)
			if (j >= len || up_token[b[j]] != (__u8)h->name[j])
				break;
		if (j < len)
			continue;
		if (f->seen & (1u << k)) {
			f->reason = UP_R_DUPLICATE;
			return 1;
		}
		f->seen |= 1u << k;
		f->bits |= h->present;
		if (h->start) {
			accept = up_walk(p, s, h->start, l->value, l->value_len);
			f->bits |= accept ? p->bitsets[up_bound(accept, UP_BITSETS - 1)] : 0;
		}
		break;
	}
	return 0;
}

static long up_find_route(__u32 i, void *state)
{
	struct up_find *f = state;
	struct up_program *p = f->p;
	struct up_route *r;
	__u32 k;

	if (i >= f->n)
		return 1;
	k = p->candidates[up_bound(f->at + i, UP_CANDIDATES - 1)];
	r = &p->routes[up_bound(k, UP_ROUTES - 1)];
	if ((f->bits & r->need) == r->need && !(f->bits & r->forbid) && (r->methods & f->method)) {
		f->route = (k & (UP_ROUTES - 1)) + 1;
		return 1;
	}
	return 0;
}

/*
 * Finds the route of the head in s. Returns the route's index (>= 0), or minus an up_reason: UP_R_NO_ROUTE, UP_R_DUPLICATE, or
 * UP_R_CAPACITY for a program of another version.
 */
UP_FUNCTION int up_program_match(struct up_program *p, struct up_scratch *s)
{
	struct up_find f = {};
	__u32 set;

	if (!p || !s)
		return -UP_R_NO_ROUTE;
	if (p->version != UP_ABI_VERSION)
		return -UP_R_CAPACITY;
	f.p = p;
	f.s = s;
	f.bits = UP_ZERO;
	f.seen = f.reason = f.route = UP_ZERO;
	f.method = 1u << (s->head.method & 31);
	if (p->n_headers) {
		up_loop(UP_LINES_MAX, up_find_header, &f);
		if (f.reason)
			return -UP_R_DUPLICATE;
	}
	set = up_walk(p, s, p->path_start, s->head.path, s->head.path_len);
	if (!set)
		return -UP_R_NO_ROUTE;
	set = up_bound(set, UP_SETS - 1);
	f.at = p->sets[set].first;
	f.n = p->sets[set].n;
	up_loop(UP_CANDIDATES_MAX, up_find_route, &f);
	return f.route ? (int)f.route - 1 : -UP_R_NO_ROUTE;
}

/*
 * Weighted choice: random is any 32-bit number. Returns the cluster id, 0 for a destination whose cluster does not exist.
 * Envoy draws a number below the total and takes the first destination whose running sum is above it; so do we.
 */
UP_INLINE __u32 up_action_cluster(const struct up_action *a, __u32 random)
{
	__u32 k, x;

	if (a->n <= 1)
		return a->to[0].cluster;
	x = (__u32)(((__u64)random * a->total) >> 32);
	for (k = 0; k < UP_WEIGHTS - 1; k++)
		if (k >= (__u32)a->n - 1 || x < a->to[k].upto)
			break;
	return a->to[up_bound(k, UP_WEIGHTS - 1)].cluster;
}

#endif
