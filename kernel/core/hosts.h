/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* hosts.h - wildcard domains of a host, in Envoy's order: the host, `*.suffix` longest first, `*`. */
#ifndef UNDERPASS_CORE_HOSTS_H
#define UNDERPASS_CORE_HOSTS_H

#include "port.h"

#define UP_LABELS_MAX 8 /* suffixes tried; a name in a cluster has five labels */

/*
 * Moves key->host to its next wildcard: `a.b.c` -> `*.b.c` -> `*.c`. Returns 0 when there is none left. The key's bytes are
 * shifted in place, so that the padding stays NUL.
 */
UP_INLINE int up_host_wider(struct up_vhost_key *key)
{
	__u32 k, from = 0, wild = key->host[0] == '*';

	for (k = 1; k < UP_HOST_MAX; k++) {
		char c = key->host[k];

		if (!c)
			return 0;
		if (c == '.' && !(wild && k == 1)) {
			from = k;
			break;
		}
	}
	if (!from)
		return 0;
	key->host[0] = '*';
	for (k = 1; k < UP_HOST_MAX; k++) {
		__u32 i = from + k - 1;

		key->host[k] = i < UP_HOST_MAX ? key->host[i & 127] : 0;
	}
	return 1;
}

#endif
