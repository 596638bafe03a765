// SPDX-License-Identifier: Apache-2.0
/*
 * Fuzzes the evaluation of route programs: whatever bytes a program holds, it is walked inside its bounds, ends, and takes the
 * route that abi.h's description gives, followed here once more without any of the core's loops.
 *
 * Input: a byte that says how many changes follow; the changes, each six bytes (part, index of two bytes, offset in the
 * element, value of two bytes); then the head.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore.c" /* one unit: the core is header functions */

#define CHECK(what)                                                                \
	do {                                                                       \
		if (!(what)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
			abort();                                                   \
		}                                                                  \
	} while (0)

/* The parts of a program, so that few changes reach the places that matter. */
static const struct part {
	size_t at, size, count;
} parts[] = {
#define PART(field, n) \
	{ __builtin_offsetof(struct up_program, field), sizeof(((struct up_program *)0)->field) / (n), (n) }
	PART(n_headers, 1), PART(path_start, 1),   PART(class_of, 256),	    PART(headers, UP_HEADERS),
	PART(states, 16),   PART(cells, 16),	   PART(sets, 16),	    PART(bitsets, 16),
	PART(routes, 16),   PART(candidates, 256), PART(states, UP_STATES), PART(cells, UP_CELLS),
	PART(sets, UP_SETS)
#undef PART
};
#define PARTS (sizeof(parts) / sizeof(parts[0]))

static struct up_program *fresh_program(void)
{
	static struct up_program *p;
	size_t k;

	/* A program of its own bounds: what is read beyond them is found. The most part of it is never changed. */
	if (!p)
		p = calloc(1, sizeof(*p));
	memset(p, 0, __builtin_offsetof(struct up_program, states));
	p->version = UP_ABI_VERSION;
	/*
	 * Something to find. Bytes are classes of their own. A path stays in state 1 and has two routes; the value of `x` stays in
	 * state 2, or goes to 3 for a `b`. A walk that goes one byte too far meets a blank, or CR, and dies.
	 */
	for (k = 0; k < 256; k++)
		p->class_of[k] = k;
	p->path_start = 1;
	p->states[1] = (struct up_dfa_state){ 300, 1, 1 };
	p->cells[300 + ' '].check = p->cells[300 + '?'].check = 1;
	p->states[2] = (struct up_dfa_state){ 600, 1, 2 };
	p->cells[600 + '\r'].check = 2;
	p->cells[600 + 'b'] = (struct up_cell){ 2, 3 };
	p->states[3] = (struct up_dfa_state){ 900, 2, 2 };
	p->cells[900 + '\r'].check = 3;
	p->n_headers = 1;
	p->headers[0] = (struct up_header){ .len = 1, .start = 2, .present = 1, .name = "x" };
	p->bitsets[1] = 2;
	p->bitsets[2] = 4;
	p->sets[1] = (struct up_set){ 0, 3 };
	p->candidates[0] = 2;
	p->candidates[1] = 1;
	p->candidates[2] = 0;
	p->routes[2] = (struct up_route){ 5, 0, 1 << UP_METHOD_GET, 0 };
	p->routes[1] = (struct up_route){ 0, 2, ~0u, 0 };
	p->routes[0] = (struct up_route){ 1, 0, ~0u, 0 };
	return p;
}

static void put(struct up_program *p, const unsigned char *c, unsigned char *undo, int back)
{
	const struct part *part = &parts[c[0] % PARTS];
	size_t size = part->size, index = (size_t)(c[1] | c[2] << 8) % part->count;
	unsigned char *to = (unsigned char *)p + part->at + index * size + c[3] % size;
	size_t n = size - c[3] % size < 2 ? 1 : 2;

	if (back) {
		memcpy(to, undo, n);
		return;
	}
	memcpy(undo, to, n);
	memcpy(to, c + 4, n);
}

/* abi.h: "step(s, byte)" */
static __u32 walk(const struct up_program *p, __u32 s, const unsigned char *b, size_t n)
{
	while (n--) {
		const struct up_cell *cell;

		s %= UP_STATES;
		cell = &p->cells[(p->states[s].base + p->class_of[*b++]) % UP_CELLS];
		s = cell->check == s ? cell->next : p->states[s].fallback;
	}
	return p->states[s % UP_STATES].accept;
}

static int evaluate(const struct up_program *p, struct up_scratch *s, const unsigned char *head)
{
	struct up_core_line l;
	__u64 bits = 0;
	__u32 set, seen = 0, i, k, j;

	for (i = 0; up_core_line(s, i, &l); i++) {
		char name[UP_NAME_MAX + 1] = "";

		for (j = 0; j < l.name_len; j++) {
			char c = head[l.name + j];

			name[j] = c >= 'A' && c <= 'Z' ? c | 32 : c;
		}
		for (k = 0; k < p->n_headers && k < UP_HEADERS; k++) {
			const struct up_header *h = &p->headers[k];

			if (h->len != l.name_len || h->hash != up_core_name_hash(name, l.name_len) ||
			    memcmp(name, h->name, h->len))
				continue;
			if (seen & 1u << k)
				return -UP_R_DUPLICATE;
			seen |= 1u << k;
			bits |= h->present;
			if (h->start) {
				__u32 accept = walk(p, h->start, head + l.value, l.value_len);

				if (accept)
					bits |= p->bitsets[accept % UP_BITSETS];
			}
			break;
		}
	}
	set = walk(p, p->path_start, head + s->head.path, s->head.path_len);
	if (!set)
		return -UP_R_NO_ROUTE;
	for (i = 0; i < p->sets[set % UP_SETS].n && i < UP_CANDIDATES_MAX; i++) {
		__u32 route = p->candidates[(p->sets[set % UP_SETS].first + i) % UP_CANDIDATES] % UP_ROUTES;
		const struct up_route *r = &p->routes[route];

		if ((bits & r->need) == r->need && !(bits & r->forbid) && (r->methods >> s->head.method & 1))
			return route;
	}
	return -UP_R_NO_ROUTE;
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t n);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t n)
{
	static struct up_scratch *s;
	struct up_program *p = fresh_program();
	struct up_core_head head;
	unsigned char undo[16][2];
	size_t changes, k;

	if (!s)
		s = up_core_scratch_new();
	if (n < 1)
		return 0;
	changes = data[0] % 16;
	if (n < 1 + 6 * changes)
		return 0;
	for (k = 0; k < changes; k++)
		put(p, data + 1 + 6 * k, undo[k], 0);
	data += 1 + 6 * changes;
	n -= 1 + 6 * changes;
	/* a header's hash is not for a fuzzer to guess */
	for (k = 0; k < UP_HEADERS; k++)
		p->headers[k].hash =
			up_core_name_hash(p->headers[k].name, p->headers[k].len < UP_NAME_MAX ? p->headers[k].len : 0);
	if (n > UP_HEAD_MAX)
		n = UP_HEAD_MAX;
	if (up_core_head(s, data, n, &head) == UP_OK) {
		int route = up_core_match(p, s);

		CHECK(route < UP_ROUTES && route > -UP_R_LAST);
		CHECK(route == evaluate(p, s, data));
		CHECK(route == up_core_match(p, s));
		p->version++;
		CHECK(up_core_match(p, s) == -UP_R_CAPACITY);
		p->version--;
	}
	data -= 6 * changes;
	for (k = changes; k--;)
		put(p, data + 6 * k, undo[k], 1);
	return 0;
}
