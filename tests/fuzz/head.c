// SPDX-License-Identifier: Apache-2.0
/*
 * Fuzzes the request head parser. What it accepts is held against a second, naive reading of RFC 9112 that was written for this
 * purpose alone: whoever reads the same bytes otherwise than the kernel is the victim of a smuggled request.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "libcore.c" /* one unit: the core is header functions */

#define CHECK(what)                                                                \
	do {                                                                       \
		if (!(what)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
			abort();                                                   \
		}                                                                  \
	} while (0)

/* RFC 9110 section 5.6.2 */
static int token(unsigned char c)
{
	return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || (c && strchr("!#$%&'*+-.^_`|~", c));
}

struct reading {
	size_t len;	       /* of the head, with its empty line */
	size_t path, path_len; /* without query */
	size_t host, host_len; /* the field's value, with port */
	unsigned hosts, lengths, closes, lines;
	unsigned long long length;
};

/* A line at a time, nothing clever. Returns 0 for whatever is not plainly a whole head of one request without surprises. */
static int read_head(const char *b, size_t n, struct reading *r)
{
	size_t at = 0, end;
	const char *space, *second;

	memset(r, 0, sizeof(*r));
	for (end = 0; end + 1 < n && !(b[end] == '\r' && b[end + 1] == '\n'); end++)
		if (b[end] == '\r' || b[end] == '\n')
			return 0;
	if (end + 1 >= n)
		return 0;
	space = memchr(b, ' ', end);
	if (!space || space == b)
		return 0;
	second = memchr(space + 1, ' ', b + end - space - 1);
	if (!second || b + end - second != 9 || memcmp(second, " HTTP/1.1", 9))
		return 0;
	r->path = space + 1 - b;
	for (at = r->path; at < (size_t)(second - b) && b[at] != '?'; at++)
		r->path_len++;
	if (!r->path_len || b[r->path] != '/')
		return 0;
	for (at = r->path; at < (size_t)(second - b); at++)
		if (b[at] <= 32 || b[at] == 127 || b[at] < 0)
			return 0;
	for (at = end + 2;; at = end + 2) {
		size_t colon, value, last;

		for (end = at; end + 1 < n && !(b[end] == '\r' && b[end + 1] == '\n'); end++)
			if (b[end] == '\r' || b[end] == '\n' || b[end] == 0)
				return 0;
		if (end + 1 >= n)
			return 0;
		if (end == at)
			break;
		r->lines++;
		for (colon = at; colon < end && token((unsigned char)b[colon]); colon++)
			;
		if (colon == at || colon == end || b[colon] != ':')
			return 0;
		for (value = colon + 1; value < end && (b[value] == ' ' || b[value] == '\t'); value++)
			;
		for (last = end; last > value && (b[last - 1] == ' ' || b[last - 1] == '\t'); last--)
			;
#define NAMED(name) (colon - at == strlen(name) && !strncasecmp(b + at, name, strlen(name)))
#define VALUED(text) (last - value == strlen(text) && !strncasecmp(b + value, text, strlen(text)))
		if (NAMED("host")) {
			r->hosts++;
			r->host = value;
			r->host_len = last - value;
		} else if (NAMED("content-length")) {
			size_t k;

			r->lengths++;
			if (last == value)
				return 0;
			for (k = value; k < last; k++) {
				if (b[k] < '0' || b[k] > '9' || r->length > 1ULL << 59)
					return 0;
				r->length = r->length * 10 + (unsigned)(b[k] - '0');
			}
		} else if (NAMED("transfer-encoding") || NAMED("upgrade") || NAMED("http2-settings")) {
			return 0;
		} else if ((colon - at > 8 && !strncasecmp(b + at, "x-envoy-", 8)) ||
			   NAMED("x-forwarded-client-cert") || (NAMED("te") && !VALUED("trailers"))) {
			return 0;
		} else if (NAMED("connection")) {
			if (VALUED("close"))
				r->closes++;
			else if (!VALUED("keep-alive"))
				return 0;
		} else if (NAMED("expect") && !VALUED("100-continue")) {
			return 0;
		}
	}
	r->len = at + 2;
	return r->hosts == 1 && r->lengths <= 1;
}

/* RFC 3986 section 5.2.4 and what Envoy merges: a path that any server would change is not its own normal form. */
static int normal(const char *p, size_t n)
{
	size_t k, start = 1;

	for (k = 1; k <= n; k++) {
		if (k < n && p[k] != '/')
			continue;
		if (k == start && k < n)
			return 0; /* an empty segment */
		if ((k - start == 1 && p[start] == '.') || (k - start == 2 && p[start] == '.' && p[start + 1] == '.'))
			return 0;
		start = k + 1;
	}
	return !memchr(p, '\\', n) && !memchr(p, '%', n) && !memchr(p, '#', n);
}

static void accepted(const char *b, size_t n, struct up_scratch *s, const struct up_core_head *head)
{
	struct reading r;
	char host[UP_HOST_MAX] = "";
	size_t k, len = 0;

	CHECK(read_head(b, n, &r));
	CHECK(r.len == head->len);
	CHECK(r.lines == head->n_lines);
	CHECK(r.path == head->path && r.path_len == head->path_len);
	CHECK(!r.lengths == !(head->flags & UP_HEAD_LENGTH));
	CHECK(!r.lengths || r.length == head->length);
	CHECK(!r.closes == !(head->flags & UP_HEAD_CLOSE));
	CHECK(normal(b + r.path, r.path_len));
	/* the key: lower case, without port */
	for (k = 0; k < r.host_len; k++) {
		char c = b[r.host + k];

		if (c == ':' && b[r.host] != '[')
			break;
		CHECK(len < sizeof(host) - 1);
		host[len++] = c >= 'A' && c <= 'Z' ? c | 32 : c;
		if (c == ']')
			break;
	}
	CHECK(len && !memcmp(host, up_core_host(s), sizeof(host)));
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t n);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t n)
{
	static struct up_scratch *used, *fresh;
	struct up_core_head head, again;
	unsigned char *longer;
	int reason;

	if (!used) {
		used = up_core_scratch_new();
		fresh = up_core_scratch_new();
	}
	if (n > UP_HEAD_MAX)
		n = UP_HEAD_MAX;
	reason = up_core_head(used, data, n, &head);
	CHECK(reason == (int)head.reason && up_core_reason_name(reason));
	/* what an earlier head left in the buffer must not be read */
	memset(fresh, 0xff, sizeof(*fresh));
	CHECK(up_core_head(fresh, data, n, &again) == reason);
	if (reason != UP_OK)
		return 0;
	CHECK(!memcmp(&head, &again, sizeof(head)));
	accepted((const char *)data, n, used, &head);
	/* neither may what stands behind the head */
	longer = calloc(1, UP_HEAD_MAX);
	if (!longer)
		return 0;
	memcpy(longer, data, head.len);
	memset(longer + head.len, 'x', UP_HEAD_MAX - head.len);
	CHECK(up_core_head(fresh, longer, UP_HEAD_MAX, &again) == UP_OK && again.len == head.len);
	/* a part of a head is no head, wherever it is cut */
	reason = up_core_head(fresh, data, head.len - 1, &again);
	CHECK(reason == UP_R_SPLIT_HEAD);
	reason = up_core_head(fresh, data, n % head.len, &again);
	CHECK(reason == UP_R_SPLIT_HEAD);
	free(longer);
	return 0;
}
