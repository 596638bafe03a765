// SPDX-License-Identifier: Apache-2.0
/*
 * Fuzzes the framing of responses. However the stream is cut into packets, its end must be found in the same place; and where
 * the stream is plain, it must be the place that RFC 9112 section 6.3 gives.
 *
 * Input: one byte of flags (bit 0: the request was HEAD), one byte of how packets are cut, the stream.
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

#define START 0xfffffe00u /* sequence numbers wrap inside the stream */

/* Follow the stream in packets of `size` bytes (0: of sizes that vary), as the data path does at ingress. */
static struct up_response follow(const unsigned char *b, size_t n, int head, size_t size)
{
	struct up_response r;
	size_t at = 0, packet, round = 0;

	memset(&r, 0, sizeof(r));
	up_core_response_begin(&r, START, head);
	for (; at < n; at += packet, round++) {
		packet = size ? size : 1 + (round * 7 + b[at]) % 40;
		if (packet > n - at)
			packet = n - at;
		for (;;) {
			__u32 ahead = r.next - (START + (__u32)at), some;
			int wants = r.state == UP_RSP_HEAD || r.state == UP_RSP_SPLIT ||
				    (r.state == UP_RSP_CHUNKS && !(r.flags & UP_RSPF_DONE));

			if (!wants || ahead >= packet)
				break;
			some = packet - ahead < UP_RSP_HEAD_MAX ? packet - ahead : UP_RSP_HEAD_MAX;
			if (up_core_response_feed(&r, b + at + ahead, some) <= 0)
				break;
		}
		up_core_response_pass(&r, START + at + packet);
	}
	return r;
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t n);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t n)
{
	struct up_response whole, cut;
	int head;

	if (n < 3 || n > 8192)
		return 0;
	head = data[0] & 1;
	whole = follow(data + 2, n - 2, head, n);
	cut = follow(data + 2, n - 2, head, data[1]);
	CHECK(whole.state == cut.state);
	CHECK((whole.flags & UP_RSPF_DONE) == (cut.flags & UP_RSPF_DONE));
	if (whole.flags & UP_RSPF_DONE) {
		CHECK(whole.end == cut.end && whole.left == cut.left);
		CHECK(whole.status == cut.status);
		CHECK((whole.flags & UP_RSPF_CLOSE) == (cut.flags & UP_RSPF_CLOSE));
		/* over for a client that has acknowledged all of it, and for no other */
		CHECK(!whole.left == !!up_core_response_over(&whole, whole.end));
		CHECK(!up_core_response_over(&whole, whole.end + 1));
	}
	return 0;
}
