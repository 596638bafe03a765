/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * response.h - where a response ends (RFC 9112 section 6.3), followed in the client's sequence numbers.
 *
 * The caller hands over the bytes at r->next, as many as it has; up_response_feed() takes what it understands and moves
 * r->next: byte by byte through heads and chunk frames, in one step over bodies. Only framing is read, so line ends may be LF
 * alone; what frames ambiguously (two lengths, an unknown coding) ends with the connection and is never taken for over.
 */
#ifndef UNDERPASS_CORE_RESPONSE_H
#define UNDERPASS_CORE_RESPONSE_H

#include "bytes.h"

#define UP_STRIDE (1u << 30) /* how far `end` may run ahead: sequence numbers compare within 2^31 */

/* Steps inside UP_RSP_SPLIT. */
enum {
	UP_H_STATUS = 0, /* in the status line; match counts its bytes */
	UP_H_LINE = 1,	 /* at the start of a line */
	UP_H_NAME = 2,
	UP_H_SKIP = 3, /* to the end of the line */
	UP_H_LENGTH = 4,
	UP_H_END = 5, /* CR of the empty line seen */
	UP_H_CODING = 6,
	UP_H_CONNECTION = 7,
};
/* Steps inside UP_RSP_CHUNKS. */
enum {
	UP_K_SIZE = 0,
	UP_K_EXTENSION = 1,
	UP_K_SIZE_LF = 2,
	UP_K_DATA_END = 3, /* line end behind the data */
	UP_K_TRAILER = 4,  /* at the start of a trailer line */
	UP_K_LAST_LF = 5,
	UP_K_TRAILER_LINE = 6,
};

struct up_rsp_scratch {
	__u8 buf[UP_RSP_HEAD_MAX + 160];
};

/* A request was sent: its response begins at `at`. */
UP_INLINE void up_response_begin(struct up_response *r, __u32 at, int head)
{
	r->next = r->end = r->high = at;
	r->left = r->value = 0;
	r->hash = 0;
	r->status = 0;
	r->state = UP_RSP_HEAD;
	r->step = 0;
	r->flags = head ? UP_RSPF_HEAD : 0;
	r->match = 0;
}

/* Is the response over for a client that has acknowledged up to `ack`? */
UP_INLINE int up_response_over(const struct up_response *r, __u32 ack)
{
	if (r->state == UP_RSP_IDLE)
		return 1;
	if (r->flags & UP_RSPF_DONE)
		return !r->left && ack == r->end;
	/* Not followed to its end (bytes passed before we could know that we need them). The client has all that was sent, and
	 * asks again: what a client that does not pipeline does when it has read its response. */
	if (r->state == UP_RSP_LOST)
		return ack == r->high && r->high != r->next;
	return 0;
}

/* Bytes up to `seen` have passed: keeps `end` ahead of them in long bodies. */
UP_INLINE void up_response_pass(struct up_response *r, __u32 seen)
{
	if (up_after(seen, r->high))
		r->high = seen;
	if (r->left && (__s32)(r->end - seen) < (__s32)(UP_STRIDE / 2)) {
		__u32 by = r->left < UP_STRIDE ? (__u32)r->left : UP_STRIDE;

		r->end += by;
		r->left -= by;
	}
}

UP_INLINE int up_response_wants(const struct up_response *r)
{
	return r->state == UP_RSP_HEAD || r->state == UP_RSP_SPLIT ||
	       (r->state == UP_RSP_CHUNKS && !(r->flags & UP_RSPF_DONE));
}

UP_INLINE void up_response_done(struct up_response *r)
{
	r->flags |= UP_RSPF_DONE;
	r->end = r->next;
	r->left = 0;
}

/* The empty line has been read; r->next stands behind it. */
UP_INLINE void up_response_headed(struct up_response *r)
{
	__u8 f = r->flags;

	r->step = 0;
	r->match = 0;
	if (r->status < 200) {
		/* an interim response: the next head follows; 101 is another protocol, which was never asked for */
		r->state = r->status == 101 || r->status < 100 ? UP_RSP_LOST : UP_RSP_HEAD;
		r->flags = f & (UP_RSPF_HEAD | UP_RSPF_CLOSE);
		r->value = 0;
		return;
	}
	if ((f & UP_RSPF_HEAD) || r->status == 204 || r->status == 304) {
		r->state = UP_RSP_LENGTH;
		up_response_done(r);
	} else if (f & UP_RSPF_CODING) {
		r->state = UP_RSP_CLOSE;
	} else if (f & UP_RSPF_CHUNKED) {
		r->state = UP_RSP_CHUNKS;
		r->value = 0;
	} else if (f & UP_RSPF_LENGTHS) {
		r->state = UP_RSP_LOST;
	} else if (f & UP_RSPF_LENGTH) {
		r->state = UP_RSP_LENGTH;
		r->flags |= UP_RSPF_DONE;
		r->left = r->value;
		r->end = r->next;
		up_response_pass(r, r->next);
	} else {
		r->state = UP_RSP_CLOSE;
	}
}

/* FNV-1a of the words that matter; only where a head is cut within a line, else words are compared whole. */
#define UP_W_CONTENT_LENGTH 0x4df9451du
#define UP_W_TRANSFER_ENCODING 0xddb4744cu
#define UP_W_CONNECTION 0x38b99ed9u
#define UP_W_CHUNKED 0xd31f4213u
#define UP_W_CLOSE 0x27cb3b23u

UP_INLINE __u8 up_lower(__u8 c)
{
	return c >= 'A' && c <= 'Z' ? c | 0x20 : c;
}

UP_INLINE void up_response_word(struct up_response *r, __u8 step)
{
	if (step == UP_H_CODING) {
		if (r->hash == UP_W_CHUNKED && r->match == 7 && !(r->flags & UP_RSPF_CHUNKED))
			r->flags |= UP_RSPF_CHUNKED;
		else
			r->flags |= UP_RSPF_CODING;
	} else if (step == UP_H_CONNECTION && r->hash == UP_W_CLOSE && r->match == 5) {
		r->flags |= UP_RSPF_CLOSE;
	} else if (step == UP_H_LENGTH) {
		r->flags |= (r->flags & UP_RSPF_LENGTH) || !r->match ? UP_RSPF_LENGTHS : UP_RSPF_LENGTH;
	}
}

UP_INLINE void up_response_name(struct up_response *r)
{
	__u8 n = r->match;

	r->step = UP_H_SKIP;
	if (n == 14 && r->hash == UP_W_CONTENT_LENGTH) {
		r->step = UP_H_LENGTH;
		if (!(r->flags & UP_RSPF_LENGTH))
			r->value = 0;
	} else if (n == 17 && r->hash == UP_W_TRANSFER_ENCODING) {
		r->step = UP_H_CODING;
	} else if (n == 10 && r->hash == UP_W_CONNECTION) {
		r->step = UP_H_CONNECTION;
	}
	r->match = 0;
	r->hash = UP_HASH_START;
}

/* One byte of a head. */
UP_INLINE void up_response_head_byte(struct up_response *r, __u8 c)
{
	__u8 step = r->step;

	if (step == UP_H_STATUS) {
		/* HTTP/1.x NNN */
		__u8 at = r->match;

		if (c == '\n') {
			r->step = UP_H_LINE;
			return;
		}
		if (at >= 9 && at < 12)
			r->status = r->status * 10 + (__u8)(c - '0');
		if (at == 7 && c == '0')
			r->flags |= UP_RSPF_CLOSE;
		if ((at == 0 && c != 'H') || (at >= 9 && at < 12 && (__u8)(c - '0') > 9))
			r->state = UP_RSP_LOST;
		if (at < 255)
			r->match = at + 1;
		return;
	}
	if (step == UP_H_LINE) {
		if (c == '\n') {
			up_response_headed(r);
		} else if (c == '\r') {
			r->step = UP_H_END;
		} else {
			r->step = UP_H_NAME;
			r->match = 1;
			r->hash = up_hash_step(UP_HASH_START, up_lower(c));
		}
		return;
	}
	if (step == UP_H_END) {
		if (c == '\n')
			up_response_headed(r);
		else
			r->state = UP_RSP_LOST;
		return;
	}
	if (c == '\n') {
		up_response_word(r, step);
		r->step = UP_H_LINE;
		r->match = 0;
		return;
	}
	if (step == UP_H_NAME) {
		if (c == ':') {
			up_response_name(r);
			return;
		}
		r->hash = up_hash_step(r->hash, up_lower(c));
		if (r->match < 255)
			r->match++;
		return;
	}
	if (c == ' ' || c == '\t' || c == '\r' || step == UP_H_SKIP)
		return;
	if (step == UP_H_LENGTH) {
		__u8 d = c - '0';

		if (d > 9 || r->value > (1ULL << 56))
			r->flags |= UP_RSPF_LENGTHS;
		r->value = r->value * 10 + d;
	} else {
		r->hash = up_hash_step(r->hash, up_lower(c));
	}
	if (r->match < 255)
		r->match++;
}

/* One byte of a chunk's frame. Returns how many bytes of data follow it, to be skipped. */
UP_INLINE __u32 up_response_chunk_byte(struct up_response *r, __u8 c)
{
	__u8 d;

	switch (r->step) {
	case UP_K_SIZE:
		d = up_lower(c);
		d = d >= 'a' && d <= 'f' ? d - 'a' + 10 : c >= '0' && c <= '9' ? c - '0' : 255;
		if (d != 255) {
			r->value = r->value << 4 | d;
			r->match = 1;
			if (r->value > UP_STRIDE)
				r->state = UP_RSP_LOST;
			return 0;
		}
		if (!r->match) {
			r->state = UP_RSP_LOST;
			return 0;
		}
		if (c == '\n')
			break;
		r->step = c == '\r' ? UP_K_SIZE_LF : UP_K_EXTENSION;
		return 0;
	case UP_K_EXTENSION:
		if (c == '\n')
			break;
		return 0;
	case UP_K_SIZE_LF:
		if (c == '\n')
			break;
		r->state = UP_RSP_LOST;
		return 0;
	case UP_K_DATA_END:
		if (c == '\n') {
			r->step = UP_K_SIZE;
			r->match = 0;
		} else if (c != '\r') {
			r->state = UP_RSP_LOST;
		}
		return 0;
	case UP_K_TRAILER:
		if (c == '\n')
			up_response_done(r);
		else
			r->step = c == '\r' ? UP_K_LAST_LF : UP_K_TRAILER_LINE;
		return 0;
	case UP_K_LAST_LF:
		if (c == '\n')
			up_response_done(r);
		else
			r->state = UP_RSP_LOST;
		return 0;
	default:
		if (c == '\n')
			r->step = UP_K_TRAILER;
		return 0;
	}
	/* a size line is complete */
	if (!r->value) {
		r->step = UP_K_TRAILER;
		return 0;
	}
	d = 0;
	r->step = UP_K_DATA_END;
	r->match = 0;
	{
		__u32 skip = (__u32)r->value;

		r->value = 0;
		return skip;
	}
}

struct up_feed {
	struct up_response *r;
	struct up_rsp_scratch *s;
	__u32 n, pos;
};

#define UP_RSP_BUF(i) up_bound(i, UP_RSP_HEAD_MAX - 1)

/* At a line's start with its first 20 bytes at hand: most lines are not ours, and are recognised by their first words. */
UP_INLINE __u8 up_response_line(const __u8 *b)
{
	__u64 w = up_lower64(b);

	/* lower() makes CR a hyphen and SUB a colon: those two are compared as they are */
	if (w == UP_8('c', 'o', 'n', 't', 'e', 'n', 't', '-'))
		return up_lower64(b + 7) == UP_8('-', 'l', 'e', 'n', 'g', 't', 'h', ':') && b[7] == '-' && b[14] == ':'
			       ? UP_H_LENGTH
			       : UP_H_SKIP;
	if (w == UP_8('t', 'r', 'a', 'n', 's', 'f', 'e', 'r'))
		return up_lower64(b + 8) == UP_8('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n') && b[8] == '-' &&
				       (b[16] | 0x20) == 'g' && b[17] == ':'
			       ? UP_H_CODING
			       : UP_H_SKIP;
	if (w == UP_8('c', 'o', 'n', 'n', 'e', 'c', 't', 'i'))
		return up_lower16(b + 8) == ('o' | 'n' << 8) && b[10] == ':' ? UP_H_CONNECTION : UP_H_SKIP;
	return UP_H_SKIP;
}

/* A status line's beginning, taken at once: b has 16 bytes. Returns how many, 0: byte by byte. */
UP_INLINE __u32 up_response_status(struct up_response *r, const __u8 *b)
{
	__u8 x = b[9] - '0', y = b[10] - '0', z = b[11] - '0';

	if (r->match || (up_load64(b) & ~(0xffULL << 56)) != UP_8('H', 'T', 'T', 'P', '/', '1', '.', 0) ||
	    (b[7] & ~1) != '0' || b[8] != ' ' || x > 9 || y > 9 || z > 9)
		return 0;
	if (b[7] == '0')
		r->flags |= UP_RSPF_CLOSE;
	r->status = x * 100 + y * 10 + z;
	r->step = UP_H_SKIP;
	return 12;
}

/* The digits behind "content-length:" with their line end, at once, if they lie within n bytes. 0: byte by byte. */
UP_INLINE __u32 up_response_digits(struct up_response *r, const __u8 *b, __u32 n)
{
	__u64 v = 0;
	__u32 k, at = b[0] == ' ';

	for (k = 0; k < 10; k++) {
		__u8 d = b[at + k] - '0';

		if (d > 9)
			break;
		v = v * 10 + d;
	}
	if (!k || at + k + 2 > n || up_load16(b + at + k) != ('\r' | '\n' << 8) || (r->flags & UP_RSPF_LENGTH))
		return 0;
	r->value = v;
	r->flags |= UP_RSPF_LENGTH;
	return at + k + 2;
}

#define UP_LINES_STEP 48

/*
 * Lines that say nothing about framing, a word of eight bytes at a time. Starts inside a line (UP_H_SKIP) or at its start
 * (UP_H_LINE); stops at a line that must be read, with r->step saying how, at the head's end, or near the end of the bytes.
 */
UP_INLINE __u32 up_response_lines(struct up_response *r, struct up_rsp_scratch *s, __u32 pos, __u32 n)
{
	__u32 k, step = r->step;

	for (k = 0; k < UP_LINES_STEP; k++) {
		__u8 *b;
		__u64 w, m;

		pos = up_bound(pos, 2 * UP_RSP_HEAD_MAX - 1);
		if (pos + 8 > n || pos >= UP_RSP_HEAD_MAX)
			break;
		b = s->buf + UP_RSP_BUF(pos);
		w = up_load64(b);
		if (step == UP_H_LINE) {
			__u8 c = (__u8)w | 0x20;

			if (c == 'c' || c == 't') {
				if (n - pos < 22)
					break;
				step = up_response_line(b);
				if (step == UP_H_CONNECTION &&
				    up_lower64(b + 12) == UP_8('k', 'e', 'e', 'p', '-', 'a', 'l', 'i'))
					step = UP_H_SKIP;
				if (step != UP_H_SKIP)
					break;
			} else if (c == ('\r' | 0x20) || c == ('\n' | 0x20)) {
				break;
			}
		}
		m = w ^ ('\n' * UP_ONES);
		m = (m - UP_ONES) & ~m & UP_HIGHS;
		/* a branch, not a conditional move: the next load must not wait for this word's line end */
		if (!m) {
			pos += 8;
			step = UP_H_SKIP;
			continue;
		}
		pos += up_first_byte(m) + 1;
		step = UP_H_LINE;
	}
	r->step = step;
	r->match = 0;
	return pos;
}

static long up_feed_step(__u32 i, void *state)
{
	struct up_feed *f = state;
	struct up_response *r = f->r;
	struct up_rsp_scratch *s = f->s;
	__u32 pos = f->pos, n = f->n, k = 0;
	__u8 *b;

	(void)i;
	if (pos >= n || pos >= UP_RSP_HEAD_MAX || !up_response_wants(r))
		return 1;
	b = s->buf + UP_RSP_BUF(pos);
	if (r->state == UP_RSP_CHUNKS) {
		__u32 skip = up_response_chunk_byte(r, b[0]);

		f->pos = pos + 1;
		r->next++;
		if ((r->flags & UP_RSPF_DONE))
			r->end = r->next;
		r->next += skip;
		return skip != 0;
	}
	if (r->state == UP_RSP_HEAD) {
		r->state = UP_RSP_SPLIT;
		r->step = UP_H_STATUS;
		r->match = 0;
		r->status = 0;
	}
	if (r->step == UP_H_STATUS && n - pos >= 16)
		k = up_response_status(r, b);
	if (r->step == UP_H_SKIP || r->step == UP_H_LINE) {
		k = up_response_lines(r, s, pos + k, n) - pos;
		pos += k;
		b = s->buf + UP_RSP_BUF(pos);
		if (r->step == UP_H_LENGTH || r->step == UP_H_CODING || r->step == UP_H_CONNECTION) {
			__u32 name = r->step == UP_H_LENGTH ? 15 : r->step == UP_H_CODING ? 18 : 11;

			k += name;
			r->hash = UP_HASH_START;
			if (r->step == UP_H_LENGTH) {
				__u32 digits = up_response_digits(r, b + 15, n - pos - 15);

				if (!(r->flags & UP_RSPF_LENGTH))
					r->value = 0;
				if (digits)
					r->step = UP_H_LINE;
				k += digits;
			}
		} else if (r->step == UP_H_LINE && n - pos >= 2 && up_load16(b) == ('\r' | '\n' << 8)) {
			r->next += k + 2;
			f->pos += k + 2;
			up_response_headed(r);
			return 0;
		}
		if (k) {
			r->next += k;
			f->pos += k;
			return 0;
		}
	}
	r->next++;
	f->pos = pos + 1;
	up_response_head_byte(r, b[0]);
	return 0;
}

/*
 * Takes up to n bytes of s->buf, which are the bytes at r->next. Returns how many were taken; r->next may lie behind them (data
 * to be skipped). Stops where the response is done or needs no more bytes.
 */
UP_FUNCTION int up_response_feed(struct up_response *r, struct up_rsp_scratch *s, __u32 n)
{
	struct up_feed f = {};

	if (!r || !s)
		return 0;
	f.r = r;
	f.s = s;
	f.n = n;
	f.pos = UP_ZERO;
	up_loop(UP_RSP_HEAD_MAX + 64, up_feed_step, &f);
	return f.pos;
}

#endif
