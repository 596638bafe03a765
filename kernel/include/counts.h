/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* counts.h - part of abi.h: why the kernel leaves a request to its home peer, and the events that it counts. */
#ifndef UNDERPASS_COUNTS_H
#define UNDERPASS_COUNTS_H

/* ---- why the kernel did not decide: a closed list, which is also the metric label (up_reason_names in core/reasons.h) ---- */
enum up_reason {
	UP_OK = 0,
	/* the head is not in canonical form, or not whole */
	UP_R_SPLIT_HEAD = 1,
	UP_R_HEAD_TOO_LONG = 2,
	UP_R_TOO_MANY_LINES = 3,
	UP_R_BAD_METHOD = 4,
	UP_R_BAD_PATH = 5,
	UP_R_PATH_NORMAL = 6, /* the path is not its own normal form: dots, escapes, double slashes, semicolons */
	UP_R_BAD_VERSION = 7,
	UP_R_BAD_LINE = 8,
	UP_R_BAD_NAME = 9,
	UP_R_BAD_VALUE = 10,
	UP_R_BAD_HOST = 11,
	UP_R_NO_HOST = 12,
	UP_R_BAD_LENGTH = 13,
	UP_R_CHUNKED_REQUEST = 14,
	UP_R_UPGRADE = 15,
	UP_R_DUPLICATE = 16, /* a header that decides comes twice */
	UP_R_PIPELINED = 17,
	UP_R_UNSYNCED = 18, /* home is still busy with bytes of unknown framing */
	UP_R_URGENT = 19,
	/* no rule, or a rule that is not for the kernel */
	UP_R_NO_TABLE = 20,
	UP_R_NO_VHOST = 21,
	UP_R_NO_ROUTE = 22,
	UP_R_NO_CLUSTER = 23,
	UP_R_NO_ENDPOINT = 24,
	UP_R_ROUTE_REGEX = 25,
	UP_R_ROUTE_QUERY = 26,
	UP_R_ROUTE_REWRITE = 27,
	UP_R_ROUTE_HEADERS = 28,
	UP_R_ROUTE_REDIRECT = 29,
	UP_R_ROUTE_DIRECT = 30,
	UP_R_ROUTE_FAULT = 31,
	UP_R_ROUTE_MIRROR = 32,
	UP_R_ROUTE_CORS = 33,
	UP_R_ROUTE_TIMEOUT = 34,
	UP_R_ROUTE_RETRY = 35,
	UP_R_ROUTE_HASH = 36,
	UP_R_ROUTE_OTHER = 37,
	UP_R_CAPACITY = 38, /* the virtual host or route is over a budget */
	/* the head again: a header by which a client speaks to a proxy, or one that only a proxy may write */
	UP_R_PROXY_HEADER = 39,
	/* no wire */
	UP_R_NO_UPSTREAM = 40, /* the stock is empty; home opens more */
	UP_R_HAIRPIN = 41,     /* the endpoint is the client itself */
	UP_R_FAMILY = 42,      /* endpoint and client speak different IP versions */
	UP_R_MSS = 43,	       /* the endpoint takes smaller segments than the client sends */
	UP_R_TIMESTAMPS = 44,  /* the two sockets' timestamps count in different units */
	UP_R_ENDPOINT_GONE = 45,
	UP_R_HALF_CLOSE = 46, /* the request comes with a FIN */
	UP_R_WINDOW = 47,     /* the first packet brings more than the endpoint takes at once */
	UP_R_LAST = 48,
};

enum up_counter {
	UP_C_CONNECT_HTTP,    /* connect hooks: sent to the home peer */
	UP_C_CONNECT_TCP,     /* connect hooks: sent to an endpoint */
	UP_C_CONNECT_REFUSED, /* connect hooks: no endpoint */
	UP_C_CLIENTS,	      /* clients established */
	UP_C_UPSTREAMS,	      /* upstreams established */
	UP_C_CONNS_FULL,      /* no room in conns: the client stays at home for good */
	UP_C_HEADS,	      /* request heads seen */
	UP_C_KERNEL,	      /* requests that the kernel decided */
	UP_C_HOME,	      /* requests left to the home peer */
	UP_C_SWITCHES,
	UP_C_SAME_WIRE,	  /* decided for the wire already in use */
	UP_C_RESPONSES,	  /* responses followed to their end */
	UP_C_RECLAIMED,	  /* wires taken back from idle clients */
	UP_C_HELD,	  /* packets held back: earlier bytes or responses outstanding */
	UP_C_WINDOW_HELD, /* packets above the endpoint's window held back */
	UP_C_CUT,	  /* packets cut in front of a pipelined head */
	UP_C_SLOW_OPTIONS,
	UP_C_TURNED,	    /* home's repetitions answered for an absent client */
	UP_C_OWNER_DROPPED, /* packets of a lent wire's owner */
	UP_C_AWAY_DROPPED,  /* packets of the home peer while the client is away */
	UP_C_STALE_DROPPED, /* packets of the past: below the last switch, or of a lost wire */
	UP_C_GAP_DROPPED,   /* packets ahead of an unseen chunk frame */
	UP_C_ABORTED,	    /* clients that went away in the middle of a response */
	UP_C_UPSTREAM_FIN,
	UP_C_UPSTREAM_RST,
	UP_C_TRANSLATE_ERROR, /* packet not translatable (dropped) */
	UP_C_EVENTS_LOST,
	UP_C_REPLIES,	    /* requests that the kernel answered itself */
	UP_C_REPLIED_AGAIN, /* packets that asked for such an answer once more */
	UP_C_FLOWS_FULL,    /* requests that flow_stats has no room for */
	UP_C_LAST = 32,
};

#endif
