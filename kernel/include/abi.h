/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * abi.h - every structure, limit and number that BPF programs, libcore.so, home and the agent share.
 *
 * Typed once, here. Python's codecs are generated from the BTF of the built objects and compared with it in a test; nothing else
 * may restate a layout. All integers are host order unless named __be16 or said otherwise. Addresses are 16 bytes in network
 * order; an IPv4 address is IPv4-mapped (::ffff:a.b.c.d), so one key serves both families and IPv6 sockets that speak IPv4.
 *
 * Maps (name: type, key -> value) and who writes them:
 *   config         ARRAY[1]             0 -> up_config                              agent, at start
 *   cgroup_workload CGROUP_STORAGE      u64 cgroup id -> up_cgroup                  agent, before attaching a workload
 *   workloads      ARRAY                id -> up_workload                           agent
 *   services       HASH                 up_service_key -> up_service                agent
 *   tables         ARRAY                table id -> up_table                        agent
 *   vhosts         HASH                 up_vhost_key -> up_vhost                    agent
 *   programs       ARRAY_OF_MAPS        program id -> ARRAY[1] of up_program        agent (a new inner map per generation)
 *   clusters       ARRAY                cluster id -> up_cluster                    agent, always with BPF_F_LOCK
 *   endpoints      ARRAY                endpoint id -> up_endpoint                  agent; id <-> address never changes while live
 *   replies        HASH                 u64 rule, or reason -> up_reply             agent, before any action that names it
 *   endpoint_stats ARRAY                endpoint id -> up_endpoint_stat             kernel
 *   endpoint_runs  ARRAY                endpoint id -> up_endpoint_run              kernel; agent begins them anew (zeros)
 *   names          HASH                 up_name_key -> up_name_text                 agent; kernel never looks: ids survive restarts
 *   sockets        SK_STORAGE           socket -> up_socket                         connect hooks (clients), home (upstreams, by fd)
 *   conns          HASH                 up_tuple -> up_conn                         kernel
 *   origins        LRU_HASH             up_tuple -> up_origin                       kernel, until the peer's end is established
 *   accepted       SK_STORAGE           socket of Envoy's -> up_origin              kernel
 *   ports          ARRAY                local port / 32 -> bits                     kernel: ports that an entry of conns has had
 *   stocks         HASH                 up_stock_key -> up_stock                    kernel; home reads
 *   events         RINGBUF              up_event                                    kernel -> home
 *   counters       PERCPU_ARRAY         enum up_counter -> u64                      kernel
 *   route_stats    PERCPU_ARRAY         route id -> up_route_stat                   kernel
 *   punt_stats     PERCPU_HASH          up_punt_key -> u64                          kernel
 *   reply_stats    PERCPU_HASH          up_punt_key -> u64                          kernel: requests it answered itself
 *   home_stats     HASH                 route id -> up_home_stat                    home
 *   home_rules     HASH                 u64 hash of the rule -> up_home_rule        agent; an entry never changes: it is named by
 *                                                                                   its content, and there before an action names it
 *   flow_stats     PERCPU_HASH          up_flow_key -> up_flow_stat                 kernel; agent removes what is gone
 *   interface_stats PERCPU_ARRAY        hash of a host ifindex -> up_interface_stat  agent writes the ifindex, kernel counts
 */
#ifndef UNDERPASS_ABI_H
#define UNDERPASS_ABI_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

#define UP_ABI_VERSION 2

/* ---- limits: each a constant with its reason ---- */
#define UP_WORKLOADS 1024    /* pods of one node: Kubernetes' default is 110, large nodes 500 */
#define UP_SERVICES 16384    /* (view, VIP, port) of one node */
#define UP_TABLES 4096	     /* route configurations of one node, shared between views that are equal */
#define UP_VHOSTS 65536	     /* (route configuration, domain): a service has about six domains */
#define UP_PROGRAMS 1024     /* virtual hosts with more than one plain route; one is about 400 KiB */
#define UP_CLUSTERS 8192     /* clusters that some route or service of the node's views names */
#define UP_CLUSTER_SLOTS 256 /* endpoints of one cluster, weights expanded; more is a named rejection */
#define UP_ENDPOINTS 16384   /* distinct (address, port) of all clusters */
#define UP_ROUTE_IDS 16384   /* routes with counters */
#define UP_CONNS 65536	     /* clients and upstreams alive at once, and clients closed less than a grace period ago */
#define UP_STOCK_SLOTS 256   /* free upstreams of one (workload, endpoint) */
#define UP_STOCKS 16384
#define UP_FLOWS 65536	 /* (workload, route, endpoint, status) that ever met */
#define UP_ORIGINS 16384 /* connections between their client's and their peer's being established: microseconds each */
#define UP_EVENTS_BYTES (1 << 20)
#define UP_INTERFACES \
	4096 /* a power of two, four times UP_WORKLOADS: interface numbers are given out one after the other */
#define UP_INTERFACE_PROBES 8
#define UP_NAME_TEXT 1024
#define UP_REPLIES 1024 /* responses that the kernel gives itself; routes beyond are home's */
#define UP_REPLY_FIRST 64
#define UP_REPLY_MAX 1000 /* bytes of one: with its headers below 1,280, the smallest MTU of IPv6 */
#define UP_REPLY_BODY_MAX \
	65536 /* longest request body that is acknowledged only to be thrown away; longer ones are home's */
#define UP_RULE_TEXT \
	8188 /* a rule that home carries out: Envoy's direct responses may have 4096 bytes, JSON doubles some */
#define UP_RULES 16384 /* as many as routes */

#define UP_HOST_MAX 92	     /* bytes of a domain, so that a key is 96 bytes; longer hosts punt */
#define UP_HEAD_MAX 4096     /* bytes of a request head that the kernel reads; longer heads punt */
#define UP_LINES_MAX 64	     /* header lines; Envoy refuses above 100, most clients send fewer than 30 */
#define UP_NAME_MAX 64	     /* bytes of one header name */
#define UP_RSP_HEAD_MAX 1024 /* bytes of a response head read at once; a power of two */

/* A route program's budgets; the compiler rejects by name what does not fit (no truncation). */
#define UP_STATES 16384	      /* DFA states, all matchers of a virtual host; state 0 is dead */
#define UP_CELLS 32768	      /* transitions that are not a state's default, in row displacement form */
#define UP_SETS 2048	      /* distinct sets of routes that a path can match */
#define UP_CANDIDATES 16384   /* all sets' routes, one after the other */
#define UP_CANDIDATES_MAX 128 /* routes in one set: bounds the walk of one request */
#define UP_BITSETS 512	      /* distinct sets of header predicates that a value can satisfy */
#define UP_HEADERS 16	      /* header names that some route of the virtual host looks at */
#define UP_ROUTES 1024	      /* routes of one virtual host */
#define UP_WEIGHTS 8	      /* destinations of one route */

/* ---- connections ---- */
struct up_tuple { /* as the pod sees it: local is the pod's own end */
	__u32 laddr[4];
	__u32 raddr[4];
	__be16 lport;
	__be16 rport;
};

enum up_kind { UP_KIND_CLIENT = 1, UP_KIND_UPSTREAM = 2 };

enum up_state {
	UP_AT_HOME = 0, /* client: uses its home wire */
	UP_AWAY = 1,	/* client: a wire is lent to it */
	UP_FREE = 2,	/* upstream: frozen, lendable */
	UP_LENT = 3,	/* upstream: lent to a client */
	UP_DYING = 4,	/* upstream: still the client's, never lent again */
	UP_DEAD = 5,	/* upstream: frozen for good; home resets and forgets it */
};

enum up_response_state {
	UP_RSP_IDLE = 0,   /* nothing asked */
	UP_RSP_HEAD = 1,   /* a head is due at `next` */
	UP_RSP_SPLIT = 2,  /* in the middle of a head that is cut over packets: byte by byte */
	UP_RSP_LENGTH = 3, /* ends at `end` plus `left` */
	UP_RSP_CHUNKS = 4, /* a chunk's frame is due at `next` */
	UP_RSP_CLOSE = 5,  /* ends with the connection */
	UP_RSP_LOST = 6,   /* not HTTP as we know it: ends, as far as we can know, with the connection */
};

/* Framing of the response under way, in the client's numbers (what it acknowledges). */
struct up_response {
	__u32 next;   /* the first byte not understood yet */
	__u32 end;    /* the byte behind the response, as far as known (`left` bytes more behind it) */
	__u64 left;   /* bytes of the body beyond `end`: bodies over 1 GiB are walked in steps, 32-bit numbers wrap */
	__u64 value;  /* number being read: Content-Length or a chunk's size */
	__u32 hash;   /* header name or value being read, in UP_RSP_SPLIT */
	__u32 high;   /* the byte behind the last one that passed */
	__u16 status; /* of the last head; 0 before */
	__u8 state;   /* enum up_response_state */
	__u8 step;    /* automaton inside UP_RSP_SPLIT and UP_RSP_CHUNKS */
	__u8 flags;   /* UP_RSPF_* */
	__u8 match;   /* bytes of the line or word being read, up to 255 */
	__u8 pad[2];
};
#define UP_RSPF_HEAD 1	  /* the request was HEAD: no body */
#define UP_RSPF_CHUNKED 2 /* seen in the head under way */
#define UP_RSPF_LENGTH 4
#define UP_RSPF_CLOSE 8	   /* Connection: close was answered */
#define UP_RSPF_DONE 16	   /* all bytes of the response are placed: it ends at `end` */
#define UP_RSPF_COUNTED 32 /* in the counters */
#define UP_RSPF_LENGTHS 64 /* two lengths, or one that is no number */
#define UP_RSPF_CODING 128 /* a transfer coding other than chunked */

#ifndef __BPF__
struct bpf_spin_lock {
	__u32 val;
};
#endif

/*
 * One end of a connection. Wire: what the remote peer sees. S next byte to it, R next byte from it, T its last timestamp.
 * A client's entry describes its home wire; an upstream's entry its own. While a wire is lent, wire number = client's number + d.
 * A client's entry is written under its socket's lock (tc egress runs inside TCP's output) and, for numbers that ingress reads,
 * under `lock`; an upstream's entry always under `lock`.
 */
struct up_conn {
	/* what every packet touches, first: three cache lines */
	struct bpf_spin_lock lock;
	__u8 kind;   /* enum up_kind */
	__u8 state;  /* enum up_state */
	__u8 flags;  /* UP_CF_* */
	__u8 family; /* of the packets: 4 or 6 */

	__u32 dseq, dack; /* client: of the wire in use; upstream: of the lending */
	__u32 tsout, tsin;
	__u8 rws, sws;	 /* window scales: what this end announced, what the peer announced */
	__u8 xrws, xsws; /* the same of the other side of the lending */
	__u32 lease;	 /* number of the lending; client and upstream must agree, else the wire was reclaimed */

	struct up_tuple peer; /* client: the wire it uses while away; upstream: the client that has it */

	__u32 next;   /* where the next request head is due; upstream, lent: where the request under way ends */
	__u32 wnd;    /* upstream: bytes the endpoint last said it takes */
	__u32 edge;   /* upstream, lent: the same as a sequence number of the client */
	__u32 cack;   /* upstream, lent: highest acknowledgement the client sent */
	__u32 eack;   /* upstream, lent: highest acknowledgement of the endpoint, in the client's numbers */
	__u32 cte;    /* upstream, lent: last timestamp echo the client sent */
	__u8 dmac[6]; /* upstream: where its frames go; learnt from its owner's packets */
	__u16 mss;    /* largest segment this end sends */

	struct up_response rsp;

	__u64 left;	/* client: bytes of the request's body beyond `next` (as up_response.left) */
	__u32 since;	/* client: sequence number of the last switch */
	__u32 endpoint; /* upstream: its endpoint; client: endpoint of the wire in use */

	__u32 S, R, T; /* wire, valid while frozen */
	__u32 oS, oR;  /* upstream: its owner's numbers; client: its first numbers (of the home wire) */
	__u32 tsoff;   /* the socket's own timestamp offset (tcp_sock.tsoffset) */
	__u32 sync;    /* client at home, unsynced: home says that a head is due here, if `synced` */
	__u32 synced;
	__u32 sent; /* client at home: the byte behind the last one that went to home */

	__u32 workload;
	__u32 table; /* client: route configuration of its service */
	__u32 cluster;
	__u32 route; /* of the request under way */
	__u32 head;  /* where the request under way began */

	__u64 cookie;	 /* socket cookie: tells an entry from its successor on the same tuple */
	__u64 start_ns;	 /* of the request under way: when its first segment left, CLOCK_MONOTONIC */
	__u64 asked;	 /* bytes of the request under way, head and body */
	__u64 answered;	 /* bytes of its response that have passed */
	__u64 closed_ns; /* when it was closed or died */
	__u32 home;	 /* upstream: up_config.home_generation when it was opened; another one: its owner is gone */
	__u32 requests;	 /* served so far */
	__u32 lendings;	 /* upstream: number of the last lending, odd, from a random start */

	/* client away without a wire: the kernel answers it */
	__u64 reply;	 /* key in replies; 0: none */
	__u32 reply_seq; /* the client's number of its first byte */
	__u32 reply_len;
	__u32 taken; /* the byte behind the last one of the request that was acknowledged */
};
#define UP_CF_UNSYNCED 1 /* client at home: bytes of unknown framing were sent; no decision until home says SYNC */
#define UP_CF_FIN 2	 /* the client has sent a FIN */
#define UP_CF_ACTIVE 4	 /* upstream: counted in its endpoint's active requests */
#define UP_CF_USEC_TS 8	 /* tcp_usec_ts is set: timestamps count microseconds */
#define UP_CF_STOCKED 16 /* upstream: its port stands in its stock */
#define UP_CF_TS 32	 /* timestamps were negotiated */
#define UP_CF_LAST 128	 /* client: its last request said Connection: close, what lies behind it is none */
#define UP_CF_CLOSED 64	 /* client: closed by the application; kept for stray packets until home forgets it */

/* Private storage of a socket. Clients: written by the connect hook. Upstreams: by home, by descriptor, before connect(). */
struct up_socket {
	__u32 kind; /* enum up_kind; 0: only getpeername is answered (connection rewritten to an endpoint) */
	__u32 workload;
	__u32 table;	/* client */
	__u32 endpoint; /* upstream */
	__u32 vip[4];	/* client: what the application connected to */
	__be16 vport;
	__u8 family; /* family of the socket: 4 or 6 */
	__u8 pad;
	__u32 home; /* upstream: home generation */
	__u32 cluster;
};

/* What a client connected to: by its tuple until the peer's end is established, then private storage of Envoy's socket. */
struct up_origin {
	__u32 vip[4];
	__u32 workload;
	__be16 vport;
	__u16 pad;
};

struct up_stock_key {
	__u32 workload;
	__u32 endpoint;
};
struct up_stock {
	struct bpf_spin_lock lock;
	__u16 n;	 /* entries of port[] in use; the last is lent first (warm) */
	__u16 misses;	 /* since home last looked (wraps) */
	__u64 wanted_ns; /* when the last UP_EVENT_WANT was sent: at most one per UP_WANT_NS */
	__u32 laddr[4];
	__be16 port[UP_STOCK_SLOTS]; /* local ports of free upstreams */
};
#define UP_WANT_NS 1000000ULL

/* ---- what the agent writes ---- */
struct up_address {
	__u32 addr[4];
	__be16 port;
	__u16 family; /* 4, 6; 0: not set */
};
struct up_config {
	__u32 version;	       /* UP_ABI_VERSION */
	__u32 generation;      /* agent: +1 after each change of endpoints, clusters or workloads; home polls it */
	__u32 home_generation; /* home: +1 at each start */
	__u32 flags;	       /* UP_CFG_* */
	struct up_address home4, home6; /* home peer per family */
	__u32 home_kind;		/* 0: underpass-home, 1: an Envoy (no SYNC will come) */
	__be16 own4, own6; /* where underpass-home listens at the home addresses whoever else does; 0: nowhere */
};

struct up_cgroup {
	__u32 workload; /* 0: not enrolled */
};
#define UP_WF_APART 1 /* does not see what the node's Envoy sees: its home is underpass-home, always */
struct up_workload {
	__u32 view;  /* 0: unused */
	__u32 flags; /* UP_WF_* */
	__u32 addr4[4],
		addr6[4]; /* its own addresses: an endpoint that is the workload itself cannot be lent (hairpin) */
};

enum up_service_kind { UP_SERVICE_NONE = 0, UP_SERVICE_HTTP = 1, UP_SERVICE_TCP = 2, UP_SERVICE_REFUSE = 3 };
struct up_service_key {
	__u32 view;
	__be16 port;
	__u16 protocol; /* IPPROTO_TCP */
	__u32 addr[4];
};
struct up_weight {
	__u32 upto;    /* sum of the weights up to and with this destination */
	__u32 cluster; /* 0: a cluster that does not exist (503, cluster-not-found) */
};
enum up_action_kind {
	UP_ACTION_NONE = 0,	/* never matches */
	UP_ACTION_CLUSTERS = 1, /* weighted choice */
	UP_ACTION_PUNT = 2,	/* the kernel must not: `reason` says why */
};
struct up_action {
	__u32 route; /* route id, for counters and names */
	__u8 kind;   /* enum up_action_kind */
	__u8 reason; /* enum up_reason */
	__u8 n;
	__u8 flags;
	__u32 total; /* sum of all weights */
	struct up_weight to[UP_WEIGHTS];
	__u32 reply; /* UP_ACTION_PUNT: 1: the kernel may answer in home's place, with replies[rule] */
	__u64 rule; /* key of home_rules: what home does with the request beyond forwarding it; 0: nothing, or it refuses */
};
/*
 * A whole HTTP/1.1 response that the kernel gives itself. Named by its rule's content, so never changed: a client may ask for it
 * again. The keys below UP_REPLY_FIRST are those of enum up_reason, for requests that no route or endpoint takes.
 */
struct up_reply {
	__u16 len;  /* 0: none */
	__u16 head; /* bytes of its head, which is all that answers a HEAD */
	__u16 status;
	__u16 pad;
	char text[1024]; /* at most UP_REPLY_MAX of it */
};
struct up_home_rule {
	__u32 len;
	char text[UP_RULE_TEXT]; /* JSON of nodeagent.rules.model.Rule */
};
struct up_service {
	__u32 kind;	      /* enum up_service_kind */
	__u32 table;	      /* UP_SERVICE_HTTP */
	struct up_action tcp; /* UP_SERVICE_TCP */
};

struct up_table {
	__u32 flags; /* UP_TABLE_* */
};
#define UP_TABLE_LIVE 1
#define UP_TABLE_WILD 2	       /* some domain is `*.x` */
#define UP_TABLE_ANY 4	       /* domain `*` exists */
#define UP_TABLE_IGNORE_PORT 8 /* ignore_port_in_host_matching */

struct up_vhost_key {
	__u32 table;
	char host[UP_HOST_MAX]; /* lower case, padded with NUL; `*.x` and `*` as they stand */
};
struct up_vhost {
	__u32 program; /* 0: no program, `direct` is the only route, for every path, method and header */
	__u32 pad;
	struct up_action direct;
};

enum up_lb { UP_LB_ROUND_ROBIN = 0, UP_LB_RANDOM = 1, UP_LB_LEAST_REQUEST = 2 };
struct up_cluster {
	struct bpf_spin_lock lock;
	__u32 n;       /* slots in use; 0: no endpoint */
	__u32 lb;      /* enum up_lb */
	__u32 turn;    /* round robin, counted by the kernel */
	__u32 choices; /* least request: how many are compared (Envoy's default 2) */
	__u32 live;    /* 1: the cluster exists */
	__u32 slot
		[UP_CLUSTER_SLOTS]; /* endpoint ids; an endpoint of weight w stands w times (weights reduced by their divisor) */
};

struct up_endpoint {
	__u32 addr[4];
	__be16 port;
	__u8 family; /* 4 or 6 */
	__u8 live;   /* 0: gone; home closes its upstreams */
};
struct up_endpoint_stat {
	__u32 active; /* requests under way on lent wires */
	__u32 requests;
	__u32 errors; /* status >= 500 */
	__u32 pad;
};
/* Requests that failed one after the other, see health.h; peaks: the longest such rows since the agent last wrote zeros. */
struct up_endpoint_run {
	__u32 errors;  /* status >= 500, or none */
	__u32 gateway; /* status 502, 503 or 504, or none */
	__u32 errors_peak;
	__u32 gateway_peak;
};

enum up_name_kind {
	UP_NAME_VIEW = 1,
	UP_NAME_WORKLOAD = 2,
	UP_NAME_TABLE = 3,
	UP_NAME_CLUSTER = 4,
	UP_NAME_ENDPOINT = 5,
	UP_NAME_ROUTE = 6,
	UP_NAME_PROGRAM = 7,
};
struct up_name_key {
	__u32 kind; /* enum up_name_kind */
	__u32 id;
};
struct up_name_text {
	char text[UP_NAME_TEXT]; /* UTF-8, padded with NUL: what the id stands for; JSON for routes */
};

/* ---- the route program of one virtual host ----
 *
 * All matchers run on one automaton with byte classes and defaults:
 *     step(s, byte): c = class_of[byte]; cell = cells[states[s].base + c];
 *                    s' = cell.check == s ? cell.next : states[s].fallback
 * base + c is always < UP_CELLS. State 0 is dead: fallback 0, no cell of its own.
 *
 * Path: the walk starts in path_start and reads the path without query. states[s].accept at its end names sets[accept] (0: no
 * route), whose routes stand in order of precedence in candidates[first .. first + n). The first whose `need` bits are all set,
 * whose `forbid` bits are all clear and whose `methods` has the request's method wins.
 *
 * Headers: headers[i] is a lower-case name some route looks at; its value (outer white space removed) walks from `start`, and
 * bitsets[states[s].accept] (accept 0: none) are its predicate bits, beside `present`. A header that comes twice punts.
 */
struct up_dfa_state {
	__u32 base;
	__u16 accept;
	__u16 fallback;
};
struct up_cell {
	__u16 check;
	__u16 next;
};
struct up_header {
	__u32 hash; /* up_name_hash() of the lower-case name; 0: unused */
	__u16 len;
	__u16 start;   /* 0: only presence matters */
	__u64 present; /* predicate bit of "is there", or 0 */
	char name[UP_NAME_MAX];
};
struct up_route {
	__u64 need;
	__u64 forbid;
	__u32 methods; /* bit set over enum up_method; all ones: any */
	__u32 action;  /* index into actions[] */
};
struct up_set {
	__u16 first;
	__u16 n; /* 1 .. UP_CANDIDATES_MAX */
};
struct up_program {
	__u32 version; /* UP_ABI_VERSION */
	__u32 n_routes;
	__u32 n_headers;
	__u32 path_start;
	__u8 class_of[256];
	struct up_header headers[UP_HEADERS];
	struct up_dfa_state states[UP_STATES];
	struct up_cell cells[UP_CELLS];
	struct up_set sets[UP_SETS];
	__u64 bitsets[UP_BITSETS];
	__u16 candidates[UP_CANDIDATES];
	struct up_route routes[UP_ROUTES];
	struct up_action actions[UP_ROUTES];
};

enum up_method {
	UP_METHOD_NONE = 0,
	UP_METHOD_GET = 1,
	UP_METHOD_HEAD = 2,
	UP_METHOD_POST = 3,
	UP_METHOD_PUT = 4,
	UP_METHOD_DELETE = 5,
	UP_METHOD_OPTIONS = 6,
	UP_METHOD_PATCH = 7,
	UP_METHOD_TRACE = 8,
};

#include "counts.h"

/* ---- counting ---- */
struct up_route_stat {
	__u64 kernel; /* requests decided in the kernel */
	__u64 punted;
};
struct up_punt_key {
	__u32 route;  /* 0: not known */
	__u32 reason; /* enum up_reason */
};
/*
 * What has become of the requests that the kernel routed: by whom they were sent, by which route, to which endpoint, and how they
 * were answered. Latency counts from the first segment's departure to the last byte of the response: slot 0 is below
 * UP_LATENCY_FIRST_US, each following one twice as wide, the last one all the rest.
 */
#define UP_LATENCY_SLOTS 20
#define UP_LATENCY_FIRST_US 64
struct up_flow_key {
	__u32 workload;
	__u32 route;
	__u32 endpoint;
	__u32 status; /* 0: no whole response came */
};
struct up_flow_stat {
	__u64 requests;
	__u64 asked, answered; /* bytes */
	__u64 us;	       /* sum of latencies */
	__u32 slot[UP_LATENCY_SLOTS];
};
struct up_home_stat {
	__u64 requests;
	__u64 refused;
};
/*
 * Interface i is counted at (i + k) % UP_INTERFACES for the first k below UP_INTERFACE_PROBES where the agent wrote its number: a
 * look-up in a hash costs more than all the rest of the counting.
 */
struct up_interface_stat {
	__u64 to_pod_packets, to_pod_bytes;
	__u64 from_pod_packets, from_pod_bytes;
	__u32 ifindex; /* 0: unused */
	__u32 pad;
};

/* ---- kernel -> home ---- */
enum up_event_type {
	UP_EVENT_WANT = 1, /* (workload, endpoint, cluster): the stock is empty or missing */
	UP_EVENT_DEAD = 2, /* upstream `tuple` must be reset and forgotten */
	UP_EVENT_CLOSED =
		3, /* client `tuple` was closed: close its home connection, forget it after the grace period */
};
struct up_event {
	__u32 type;
	__u32 workload;
	__u32 endpoint;
	__u32 cluster;
	__u64 cookie;
	struct up_tuple tuple;
	__u32 pad;
};

/* ---- home -> kernel: program `up_control` (SCHED_CLS), run with BPF_PROG_TEST_RUN over a packet that is this struct ---- */
enum up_control_op {
	UP_CTL_RECLAIM = 1, /* take upstream `tuple` back from its client if that is idle, and stock it */
	UP_CTL_KILL = 2, /* unstock upstream `tuple` and forget it; BUSY (and never lent again) while a client has it */
	UP_CTL_SYNC =
		3, /* client `tuple` (local: the client's end): home has got `received` bytes and will have sent `sent` bytes
			       (both modulo 2^32) when all that it was asked is answered: the next head is due there */
	UP_CTL_FORGET = 4, /* remove client `tuple` if it is closed and its cookie is `cookie` */
	UP_CTL_HEALTH = 5, /* endpoint `received` has answered a request of home's with status `sent`; 0: not at all */
};
enum up_control_result { UP_CTL_OK = 0, UP_CTL_BUSY = 1, UP_CTL_GONE = 2, UP_CTL_INVALID = 3 };
struct up_control {
	__u8 ethernet[14]; /* test runs want an Ethernet header */
	__u16 op;
	struct up_tuple tuple;
	__u32 received;
	__u32 sent;
	__u32 pad;
	__u64 cookie;
};

#endif
