/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* hosts.h - wildcard domains of a host, in Envoy's order: the host, `*.suffix` longest first, `*`. */
#ifndef UNDERPASS_CORE_HOSTS_H
#define UNDERPASS_CORE_HOSTS_H

#include "head.h"

/*
 * Widens s->key.host to the next wildcard of s->host: `a.b.c` -> `*.b.c` -> `*.c`. Returns 0 when there is none left.
 * s->scan.pos is where the last suffix began; 0 at first.
 */
UP_INLINE int up_host_wider(struct up_scratch *s)
{
	__u32 at = s->scan.pos, k;

	if (!at)
		__builtin_memcpy(s->host, s->key.host, UP_HOST_MAX);
	for (k = 0; k < UP_HOST_MAX; k++) {
		char c;

		at++;
		if (at >= UP_HOST_MAX)
			return 0;
		c = s->host[at & 127];
		if (!c)
			return 0;
		if (c == '.')
			break;
		at = up_opaque(s, at, 127);
	}
	if (k == UP_HOST_MAX)
		return 0;
	at = up_opaque(s, at, 127);
	s->scan.pos = at;
	s->key.host[0] = '*';
	/* s->host is padded to twice its length, so the copy needs no end */
	__builtin_memcpy(s->key.host + 1, s->host + up_bound(at, 127), UP_HOST_MAX - 1);
	return 1;
}

/* Makes s->key.host the catch-all domain. */
UP_INLINE void up_host_any(struct up_scratch *s)
{
	__builtin_memset(s->key.host, 0, sizeof(s->key.host));
	s->key.host[0] = '*';
}

#endif
