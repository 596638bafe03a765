/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * head.h - reads a request head in canonical form, or says why it is not one.
 *
 * Canonical (RFC 9112, narrowed to what every server and Envoy 1.40 read alike): one of eight methods, an origin-form target
 * that is its own normal form, HTTP/1.1, CRLF line ends, token names, one space or none behind the colon, printable ASCII
 * values without outer white space, exactly one Host, at most one Content-Length of digits, no Transfer-Encoding, no Upgrade,
 * a Connection header that says nothing but keep-alive or close, and no header that is a proxy's to obey or to write. Whatever
 * else comes is left to the home peer.
 */
#ifndef UNDERPASS_CORE_HEAD_H
#define UNDERPASS_CORE_HEAD_H

#include "bytes.h"

struct up_line {
	__u16 name, name_len;
	__u16 value, value_len;
	__u32 hash;
};

#define UP_HEAD_LENGTH 1 /* Content-Length is there */
#define UP_HEAD_CLOSE 2	 /* Connection: close */
#define UP_HEAD_EXPECT 4 /* Expect: 100-continue */
#define UP_HEAD_HOST 8
#define UP_HEAD_PORT 16 /* the host came with a port */

struct up_head {
	__u32 reason;	      /* UP_OK, or why this is not for the kernel */
	__u32 len;	      /* bytes of the head with its empty line; 0: not whole */
	__u32 method;	      /* enum up_method */
	__u32 flags;	      /* UP_HEAD_* */
	__u64 length;	      /* of the body */
	__u16 path, path_len; /* without query */
	__u16 target_len;     /* with query */
	__u16 host, host_len; /* without port */
	__u16 n_lines;
	__u32 once; /* headers of up_joined() that came */
	struct up_line lines[UP_LINES_MAX];
};

/* The parser's state between two steps. It lives beside the buffer, not on the stack: what the verifier loads from a map value it
 * knows nothing about, so states of a loop that differ only in numbers are one. */
struct up_scan {
	__u32 n;	      /* bytes in buf */
	__u32 pos;	      /* next byte to read */
	__u32 segment, query; /* of the target; segment: 0 at its start, 1 ".", 2 "..", 3 other */
	__u32 in_value;
	__u32 name, name_len, hash, value;
	__u32 done;
	__u32 reason;
	__u32 pad;
};

/* One request head and what is made of it: a per-CPU map value in the kernel, an object of the caller's elsewhere. */
struct up_scratch {
	__u8 buf[UP_HEAD_MAX + 128]; /* behind the head: room for reads of eight bytes */
	struct up_head head;
	struct up_scan scan;
	struct up_vhost_key key;
	char host[128 + UP_HOST_MAX + 4]; /* the host again while wildcards are searched; NUL behind it */
};

/* A loop's step gets its scratch through the stack, as bpf_loop() wants it. */
struct up_step {
	struct up_scratch *s;
};

/* The number v, which the verifier shall forget: stored in the scratch and loaded again. */
#define up_opaque(s, v, mask)                              \
	({                                                 \
		(s)->scan.pad = (v);                       \
		*(volatile __u32 *)&(s)->scan.pad &(mask); \
	})

#define UP_HASH_HOST 0xaffea56fu /* up_hash of "host" */
#define UP_BUF(i) up_bound(i, UP_HEAD_MAX - 1)
#define UP_TARGET_STEP 16

static long up_scan_target(__u32 i, void *state)
{
	struct up_scratch *s = ((struct up_step *)state)->s;
	struct up_scan *c = &s->scan;
	__u32 pos = c->pos, segment = c->segment, query = c->query, k;

	(void)i;
	for (k = 0; k < UP_TARGET_STEP; k++) {
		__u8 class;

		if (pos >= c->n || pos >= UP_HEAD_MAX) {
			c->reason = UP_R_SPLIT_HEAD;
			return 1;
		}
		class = up_target_class[s->buf[UP_BUF(pos)]];
		if (query) {
			if (class == UP_B_SPACE)
				goto end;
			if (!(class & UP_B_IN_QUERY)) {
				c->reason = UP_R_BAD_PATH;
				return 1;
			}
			pos++;
			continue;
		}
		class &= UP_B_CLASS;
		if (class == UP_B_PLAIN) {
			segment = 3;
		} else if (class == UP_B_SLASH) {
			if (segment < 3) {
				c->reason = UP_R_PATH_NORMAL;
				return 1;
			}
			segment = 0;
		} else if (class == UP_B_DOT) {
			segment = segment < 2 ? segment + 1 : 3;
		} else if (class == UP_B_QUERY || class == UP_B_SPACE) {
			if (segment == 1 || segment == 2) {
				c->reason = UP_R_PATH_NORMAL;
				return 1;
			}
			s->head.path_len = pos - s->head.path;
			if (class == UP_B_SPACE)
				goto end;
			query = 1;
		} else {
			c->reason = class == UP_B_FOLD ? UP_R_PATH_NORMAL : UP_R_BAD_PATH;
			return 1;
		}
		pos++;
	}
	c->pos = pos;
	c->segment = segment;
	c->query = query;
	return 0;
end:
	s->head.target_len = pos - s->head.path;
	c->pos = pos;
	c->done = 1;
	return 1;
}

UP_INLINE __u32 up_scan_method(const __u8 *b, __u32 *method)
{
	__u64 w = up_load64(b);
	__u32 w4 = (__u32)w;

	if (w4 == UP_4('G', 'E', 'T', ' ')) {
		*method = UP_METHOD_GET;
		return 4;
	}
	if (w4 == UP_4('P', 'U', 'T', ' ')) {
		*method = UP_METHOD_PUT;
		return 4;
	}
	if ((w & 0xffffffffffULL) == UP_8('P', 'O', 'S', 'T', ' ', 0, 0, 0)) {
		*method = UP_METHOD_POST;
		return 5;
	}
	if ((w & 0xffffffffffULL) == UP_8('H', 'E', 'A', 'D', ' ', 0, 0, 0)) {
		*method = UP_METHOD_HEAD;
		return 5;
	}
	if ((w & 0xffffffffffffffULL) == UP_8('D', 'E', 'L', 'E', 'T', 'E', ' ', 0)) {
		*method = UP_METHOD_DELETE;
		return 7;
	}
	if (w == UP_8('O', 'P', 'T', 'I', 'O', 'N', 'S', ' ')) {
		*method = UP_METHOD_OPTIONS;
		return 8;
	}
	if ((w & 0xffffffffffffULL) == UP_8('P', 'A', 'T', 'C', 'H', ' ', 0, 0)) {
		*method = UP_METHOD_PATCH;
		return 6;
	}
	if ((w & 0xffffffffffffULL) == UP_8('T', 'R', 'A', 'C', 'E', ' ', 0, 0)) {
		*method = UP_METHOD_TRACE;
		return 6;
	}
	*method = w == UP_8('C', 'O', 'N', 'N', 'E', 'C', 'T', ' ');
	return 0;
}

UP_INLINE void up_scan_length(struct up_scratch *s, __u32 at, __u32 len)
{
	struct up_scan *c = &s->scan;
	__u64 v = 0;
	__u32 k;

	if ((s->head.flags & UP_HEAD_LENGTH) || !len || len > 15) {
		c->reason = UP_R_BAD_LENGTH;
		return;
	}
	for (k = 0; k < 15; k++) {
		__u8 d;

		if (k >= len)
			break;
		d = s->buf[UP_BUF(at + k)] - '0';
		if (d > 9) {
			c->reason = UP_R_BAD_LENGTH;
			return;
		}
		v = v * 10 + d;
	}
	s->head.length = v;
	s->head.flags |= UP_HEAD_LENGTH;
}

/*
 * Headers that Envoy 1.40 joins into one line when they come twice (`underpass test equivalence` holds this list against it). Two
 * servers may read two lines as the first, the last or both, so they are a proxy's to join. Returns a bit's number, 32 for none. By
 * hash alone: another name of the same hash is left to the home peer at worst.
 */
UP_INLINE __u32 up_joined(__u32 hash)
{
	switch (hash) {
	case 0x08247e29u: /* accept */
		return 0;
	case 0xc9715a99u: /* accept-encoding */
		return 1;
	case 0x913657beu: /* authorization */
		return 2;
	case 0x50c8a4cdu: /* cache-control */
		return 3;
	case 0x03e2ed88u: /* content-encoding */
		return 4;
	case 0xfcf70995u: /* content-type */
		return 5;
	case 0xaf07be0bu: /* grpc-timeout */
		return 6;
	case 0xd67076eau: /* if-match */
		return 7;
	case 0x83e879a9u: /* if-modified-since */
		return 8;
	case 0x972b6177u: /* if-none-match */
		return 9;
	case 0x8b887e3eu: /* if-range */
		return 10;
	case 0xe230478au: /* if-unmodified-since */
		return 11;
	case 0xd97f9a4fu: /* origin */
		return 12;
	case 0x19fa4625u: /* pragma */
		return 13;
	case 0xec9af966u: /* referer */
		return 14;
	case 0x24259beeu: /* user-agent */
		return 15;
	case 0x69122c13u: /* via */
		return 16;
	case 0xb6a94211u: /* x-client-trace-id */
		return 17;
	case 0xadb2f988u: /* x-forwarded-for */
		return 18;
	case 0x28867067u: /* x-forwarded-host */
		return 19;
	case 0x79e7ae4eu: /* x-forwarded-port */
		return 20;
	case 0x2eb2af39u: /* x-forwarded-proto */
		return 21;
	case 0xe2c21457u: /* x-request-id */
		return 22;
	case 0x9011af27u: /* access-control-request-method */
		return 23;
	case 0xd68cc290u: /* access-control-request-headers */
		return 24;
	case 0xec503b12u: /* access-control-request-private-network */
		return 25;
	case 0x96da6b58u: /* expect */
		return 26;
	case 0x3c453eb2u: /* te */
		return 27;
	case 0x2827d46cu: /* proxy-status */
		return 28;
	case 0x7b6cac96u: /* grpc-accept-encoding */
		return 29;
	case 0xedb72949u: /* cdn-loop */
		return 30;
	}
	return 32;
}

/* The headers that decide what a request is. Their names are compared whole, never by hash. */
UP_INLINE void up_scan_known(struct up_scratch *s, __u32 value_len)
{
	struct up_scan *c = &s->scan;
	const __u8 *n = s->buf + UP_BUF(c->name), *v = s->buf + UP_BUF(c->value);
	__u32 bit;

	/* x-envoy-*: orders to a proxy (retries, timeouts) and what a proxy says of itself. Envoy obeys, takes out or writes over;
	 * passed on, an order would be ignored in silence, and a server would believe what a client made up. */
	if (c->name_len > 8 && up_lower64(n) == UP_8('x', '-', 'e', 'n', 'v', 'o', 'y', '-')) {
		c->reason = UP_R_PROXY_HEADER;
		return;
	}
	bit = up_opaque(s, up_joined(c->hash), 63);
	if (bit < 32) {
		if (s->head.once & 1u << bit)
			c->reason = UP_R_DUPLICATE;
		s->head.once |= 1u << bit;
	}
	switch (c->name_len) {
	case 2:
		if (up_lower16(n) == ('t' | 'e' << 8) &&
		    !(value_len == 8 && up_lower64(v) == UP_8('t', 'r', 'a', 'i', 'l', 'e', 'r', 's')))
			c->reason = UP_R_PROXY_HEADER;
		break;
	case 4:
		if (up_lower32(n) == UP_4('h', 'o', 's', 't')) {
			if (s->head.flags & UP_HEAD_HOST)
				c->reason = UP_R_DUPLICATE;
			s->head.flags |= UP_HEAD_HOST;
			s->head.host = c->value;
			s->head.host_len = value_len;
		}
		break;
	case 6:
		if (up_lower32(n) == UP_4('e', 'x', 'p', 'e') && up_lower16(n + 4) == ('c' | 't' << 8)) {
			if (value_len == 12 && up_lower64(v) == UP_8('1', '0', '0', '-', 'c', 'o', 'n', 't') &&
			    up_lower32(v + 8) == UP_4('i', 'n', 'u', 'e'))
				s->head.flags |= UP_HEAD_EXPECT;
			else
				c->reason = UP_R_UPGRADE;
		}
		break;
	case 7:
		if (up_lower32(n) == UP_4('u', 'p', 'g', 'r') && up_lower32(n + 3) == UP_4('r', 'a', 'd', 'e'))
			c->reason = UP_R_UPGRADE;
		break;
	case 10:
		if (up_lower64(n) == UP_8('c', 'o', 'n', 'n', 'e', 'c', 't', 'i') &&
		    up_lower16(n + 8) == ('o' | 'n' << 8)) {
			if (value_len == 5 && up_lower32(v) == UP_4('c', 'l', 'o', 's') && (v[4] | 0x20) == 'e')
				s->head.flags |= UP_HEAD_CLOSE;
			else if (!(value_len == 10 && up_lower64(v) == UP_8('k', 'e', 'e', 'p', '-', 'a', 'l', 'i') &&
				   up_lower16(v + 8) == ('v' | 'e' << 8)))
				c->reason = UP_R_UPGRADE;
		}
		break;
	case 12: /* Envoy writes one of its own where it is empty */
		if (!value_len && up_lower64(n) == UP_8('x', '-', 'r', 'e', 'q', 'u', 'e', 's') &&
		    up_lower32(n + 8) == UP_4('t', '-', 'i', 'd'))
			c->reason = UP_R_PROXY_HEADER;
		break;
	case 14:
		if (up_lower64(n) == UP_8('c', 'o', 'n', 't', 'e', 'n', 't', '-') &&
		    up_lower64(n + 6) == UP_8('t', '-', 'l', 'e', 'n', 'g', 't', 'h'))
			up_scan_length(s, c->value, value_len);
		else if (up_lower64(n) == UP_8('h', 't', 't', 'p', '2', '-', 's', 'e') &&
			 up_lower64(n + 6) == UP_8('s', 'e', 't', 't', 'i', 'n', 'g', 's'))
			c->reason = UP_R_UPGRADE;
		break;
	case 17:
		if (up_lower64(n) == UP_8('t', 'r', 'a', 'n', 's', 'f', 'e', 'r') &&
		    up_lower64(n + 8) == UP_8('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n') && (n[16] | 0x20) == 'g')
			c->reason = UP_R_CHUNKED_REQUEST;
		else if (!value_len && up_lower64(n) == UP_8('x', '-', 'f', 'o', 'r', 'w', 'a', 'r') &&
			 up_lower64(n + 8) == UP_8('d', 'e', 'd', '-', 'p', 'r', 'o', 't') && (n[16] | 0x20) == 'o')
			c->reason = UP_R_PROXY_HEADER;
		break;
	case 23: /* a client's certificate, which only a proxy can vouch for */
		if (up_lower64(n) == UP_8('x', '-', 'f', 'o', 'r', 'w', 'a', 'r') &&
		    up_lower64(n + 8) == UP_8('d', 'e', 'd', '-', 'c', 'l', 'i', 'e') &&
		    up_lower64(n + 15) == UP_8('e', 'n', 't', '-', 'c', 'e', 'r', 't'))
			c->reason = UP_R_PROXY_HEADER;
		break;
	}
}

/* One step over the header lines: a name and up to 64 bytes of its value, or 64 more. A step is a call, which costs as much as a line. */
static long up_scan_lines(__u32 i, void *state)
{
	struct up_scratch *s = ((struct up_step *)state)->s;
	struct up_scan *c = &s->scan;
	__u32 pos = c->pos, k, hash, len;

	(void)i;
	if (!c->in_value) {
		__u8 *b = s->buf + UP_BUF(pos);

		if (pos + 2 > c->n || pos + 2 > UP_HEAD_MAX) {
			c->reason = UP_R_SPLIT_HEAD;
			return 1;
		}
		if (up_load16(b) == ('\r' | '\n' << 8)) {
			s->head.len = pos + 2;
			c->done = 1;
			return 1;
		}
		hash = UP_HASH_START;
		if (up_lower32(b) == UP_4('h', 'o', 's', 't') && b[4] == ':') {
			/* in every request, and mostly alone in front of the rest */
			k = 4;
			hash = UP_HASH_HOST;
			goto named;
		}
		for (k = 0; k < UP_NAME_MAX; k++) {
			__u8 t = up_token[b[k]];

			if (!t)
				break;
			hash = up_hash_step(hash, t);
		}
		k = up_opaque(s, k, 127);
named:
		if (pos + k >= c->n || pos + k >= UP_HEAD_MAX) {
			c->reason = UP_R_SPLIT_HEAD;
			return 1;
		}
		if (b[k] != ':' || !k) {
			c->reason = UP_R_BAD_NAME;
			return 1;
		}
		c->name = pos;
		c->name_len = k;
		c->hash = hash;
		pos += k + 1;
		if (s->buf[UP_BUF(pos)] == ' ')
			pos++;
		pos = up_opaque(s, pos, 2 * UP_HEAD_MAX - 1);
		c->value = pos;
		c->in_value = 1;
	}
	for (k = 0; k < 8; k++) {
		__u64 m = up_not_text(up_load64(s->buf + UP_BUF(pos)));

		if (m) {
			pos += up_first_byte(m);
			goto end;
		}
		pos += 8;
		if (pos >= c->n || pos >= UP_HEAD_MAX)
			break;
	}
	c->pos = pos;
	if (pos >= c->n || pos >= UP_HEAD_MAX) {
		c->reason = UP_R_SPLIT_HEAD;
		return 1;
	}
	return 0;
end:
	/* what stands behind the last byte of the packet is not ours: the line end must lie inside */
	if (pos + 2 > c->n || pos + 2 > UP_HEAD_MAX) {
		c->reason = UP_R_SPLIT_HEAD;
		return 1;
	}
	if (up_load16(s->buf + UP_BUF(pos)) != ('\r' | '\n' << 8)) {
		c->reason = s->buf[UP_BUF(pos)] == '\n' ? UP_R_BAD_LINE : UP_R_BAD_VALUE;
		return 1;
	}
	len = pos - c->value;
	if (len && (s->buf[UP_BUF(c->value)] == ' ' || s->buf[UP_BUF(pos - 1)] == ' ')) {
		c->reason = UP_R_BAD_VALUE;
		return 1;
	}
	k = s->head.n_lines;
	if (k >= UP_LINES_MAX) {
		c->reason = UP_R_TOO_MANY_LINES;
		return 1;
	}
	s->head.lines[k].name = c->name;
	s->head.lines[k].name_len = c->name_len;
	s->head.lines[k].value = c->value;
	s->head.lines[k].value_len = len;
	s->head.lines[k].hash = c->hash;
	s->head.n_lines = k + 1;
	up_scan_known(s, len);
	c->pos = pos + 2;
	c->in_value = 0;
	return c->reason != UP_OK;
}

/* Suffixes that are looked up for a host (hosts.h): hosts with more are not for the kernel. A name in a cluster has five labels. */
#define UP_LABELS_MAX 8

/* Host as the key of a virtual host: lower case, port cut off, padded with NUL. RFC 9110 section 7.2, RFC 3986 section 3.2.2. */
UP_INLINE __u32 up_scan_host(struct up_scratch *s)
{
	__u32 at = s->head.host, n = s->head.host_len, k, len = 0, port = 0, bracket = 0, dots = 0;

	__builtin_memset(&s->key, 0, sizeof(s->key));
	if (!n)
		return UP_R_NO_HOST;
	for (k = 0; k < UP_HOST_MAX + 6; k++) {
		__u8 c;

		if (k >= n)
			break;
		c = s->buf[UP_BUF(at + k)];
		if (port) {
			if (c < '0' || c > '9' || k - len > 5)
				return UP_R_BAD_HOST;
			continue;
		}
		if (c >= 'A' && c <= 'Z')
			c |= 0x20;
		if (c == '[' && !k) {
			bracket = 1;
		} else if (c == ']' && bracket == 1) {
			bracket = 2;
		} else if (c == ':' && bracket != 1) {
			port = 1;
			s->head.flags |= UP_HEAD_PORT;
			continue;
		} else if (bracket == 2 || !((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
					     c == '_' || (c == ':' && bracket == 1))) {
			return UP_R_BAD_HOST;
		}
		dots = up_opaque(s, dots + (c == '.'), 127);
		len = up_opaque(s, len, 127);
		if (len >= UP_HOST_MAX - 1 || dots > UP_LABELS_MAX)
			return UP_R_BAD_HOST;
		s->key.host[len++] = c;
	}
	if (k < n || !len || bracket == 1)
		return UP_R_BAD_HOST;
	s->head.host_len = len;
	return UP_OK;
}

/*
 * Reads the head in s->buf[0 .. n). Returns s->head.reason: UP_OK, or the reason for a punt; UP_R_SPLIT_HEAD when the n bytes may
 * be the beginning of a head but are not a whole one. On UP_OK s->head is filled and s->key.host holds the host.
 */
UP_FUNCTION int up_head_parse(struct up_scratch *s, __u32 n)
{
	struct up_step step = {};
	struct up_scan *c;
	__u32 method = UP_ZERO, at;

	if (!s)
		return UP_R_SPLIT_HEAD;
	step.s = s;
	c = &s->scan;
	__builtin_memset(&s->head, 0, __builtin_offsetof(struct up_head, lines));
	__builtin_memset(c, 0, sizeof(*c));
	if (n > UP_HEAD_MAX)
		n = UP_HEAD_MAX;
	if (n < 8) {
		s->head.reason = UP_R_SPLIT_HEAD;
		return UP_R_SPLIT_HEAD;
	}
	at = up_scan_method(s->buf, &method);
	if (at >= n) { /* "OPTIONS " and nothing behind it yet */
		s->head.reason = UP_R_SPLIT_HEAD;
		return UP_R_SPLIT_HEAD;
	}
	if (!at || s->buf[at & 15] != '/') {
		s->head.reason = method && !at ? UP_R_UPGRADE : at ? UP_R_BAD_PATH : UP_R_BAD_METHOD;
		return s->head.reason;
	}
	s->head.method = method;
	s->head.path = at;
	c->n = n;
	c->pos = at + 1;
	up_loop(UP_HEAD_MAX / UP_TARGET_STEP, up_scan_target, &step);
	at = c->pos;
	if (!c->done) {
		if (!c->reason)
			c->reason = UP_R_HEAD_TOO_LONG;
		goto out;
	}
	if (at + 11 > n) {
		c->reason = UP_R_SPLIT_HEAD;
		goto out;
	}
	if (up_load64(s->buf + UP_BUF(at + 1)) != UP_8('H', 'T', 'T', 'P', '/', '1', '.', '1') ||
	    up_load16(s->buf + UP_BUF(at + 9)) != ('\r' | '\n' << 8)) {
		c->reason = UP_R_BAD_VERSION;
		goto out;
	}
	c->pos = at + 11;
	c->done = 0;
	/* a line with 64 bytes of its value a step, or 64 more of them */
	up_loop(UP_LINES_MAX + 4 + UP_HEAD_MAX / 64, up_scan_lines, &step);
	if (!c->done) {
		if (!c->reason)
			c->reason = UP_R_TOO_MANY_LINES;
		goto out;
	}
	if (!(s->head.flags & UP_HEAD_HOST))
		c->reason = UP_R_NO_HOST;
	else
		c->reason = up_scan_host(s);
out:
	if (c->reason == UP_R_SPLIT_HEAD && n >= UP_HEAD_MAX)
		c->reason = UP_R_HEAD_TOO_LONG;
	c->pos = 0;
	s->head.reason = c->reason;
	return c->reason;
}

#endif
