/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* bytes.h - classes of bytes, eight bytes at a time, and the hash of a header name. */
#ifndef UNDERPASS_CORE_BYTES_H
#define UNDERPASS_CORE_BYTES_H

#include "port.h"

/*
 * What a byte may be in a request target (RFC 3986), narrowed to what no server or proxy rewrites: everything that Envoy's path
 * normalisation would touch (percent escapes, backslash) or that servers read differently (semicolon) is UP_B_FOLD and punts.
 */
enum {
	UP_B_BAD = 0,
	UP_B_PLAIN = 1,
	UP_B_SLASH = 2,
	UP_B_DOT = 3,
	UP_B_QUERY = 4,
	UP_B_SPACE = 5,
	UP_B_FOLD = 6,
	UP_B_CLASS = 7, /* mask */
	UP_B_IN_QUERY = 8,
};

#define B_ UP_B_BAD
#define P_ (UP_B_PLAIN | UP_B_IN_QUERY)
#define S_ (UP_B_SLASH | UP_B_IN_QUERY)
#define D_ (UP_B_DOT | UP_B_IN_QUERY)
#define Q_ (UP_B_QUERY | UP_B_IN_QUERY)
#define E_ (UP_B_SPACE)
#define F_ (UP_B_FOLD | UP_B_IN_QUERY)
/* clang-format off */
static const __u8 up_target_class[256] = {
	/* 00 */ B_, B_, B_, B_, B_, B_, B_, B_, B_, B_, B_, B_, B_, B_, B_, B_,
	/* 10 */ B_, B_, B_, B_, B_, B_, B_, B_, B_, B_, B_, B_, B_, B_, B_, B_,
	/*  ! */ E_, P_, B_, B_, P_, F_, P_, P_, P_, P_, P_, P_, P_, P_, D_, S_,
	/* 0  */ P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, F_, B_, P_, B_, Q_,
	/* @A */ P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_,
	/* P  */ P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, B_, F_, B_, B_, P_,
	/* `a */ B_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_,
	/* p  */ P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, P_, B_, B_, B_, P_, B_,
};

/* Token characters of RFC 9110 section 5.6.2, as lower case; 0: not one. */
static const __u8 up_token[256] = {
	[ '!' ] = '!', [ '#' ] = '#', [ '$' ] = '$', [ '%' ] = '%', [ '&' ] = '&', [ '\'' ] = '\'', [ '*' ] = '*', [ '+' ] = '+',
	[ '-' ] = '-', [ '.' ] = '.', [ '^' ] = '^', [ '_' ] = '_', [ '`' ] = '`', [ '|' ] = '|', [ '~' ] = '~',
	[ '0' ] = '0', [ '1' ] = '1', [ '2' ] = '2', [ '3' ] = '3', [ '4' ] = '4', [ '5' ] = '5', [ '6' ] = '6', [ '7' ] = '7', [ '8' ] = '8', [ '9' ] = '9',
	[ 'a' ] = 'a', [ 'b' ] = 'b', [ 'c' ] = 'c', [ 'd' ] = 'd', [ 'e' ] = 'e', [ 'f' ] = 'f', [ 'g' ] = 'g', [ 'h' ] = 'h', [ 'i' ] = 'i', [ 'j' ] = 'j',
	[ 'k' ] = 'k', [ 'l' ] = 'l', [ 'm' ] = 'm', [ 'n' ] = 'n', [ 'o' ] = 'o', [ 'p' ] = 'p', [ 'q' ] = 'q', [ 'r' ] = 'r', [ 's' ] = 's', [ 't' ] = 't',
	[ 'u' ] = 'u', [ 'v' ] = 'v', [ 'w' ] = 'w', [ 'x' ] = 'x', [ 'y' ] = 'y', [ 'z' ] = 'z',
	[ 'A' ] = 'a', [ 'B' ] = 'b', [ 'C' ] = 'c', [ 'D' ] = 'd', [ 'E' ] = 'e', [ 'F' ] = 'f', [ 'G' ] = 'g', [ 'H' ] = 'h', [ 'I' ] = 'i', [ 'J' ] = 'j',
	[ 'K' ] = 'k', [ 'L' ] = 'l', [ 'M' ] = 'm', [ 'N' ] = 'n', [ 'O' ] = 'o', [ 'P' ] = 'p', [ 'Q' ] = 'q', [ 'R' ] = 'r', [ 'S' ] = 's', [ 'T' ] = 't',
	[ 'U' ] = 'u', [ 'V' ] = 'v', [ 'W' ] = 'w', [ 'X' ] = 'x', [ 'Y' ] = 'y', [ 'Z' ] = 'z',
};
/* clang-format on */
#undef B_
#undef P_
#undef S_
#undef D_
#undef Q_
#undef E_
#undef F_

#define UP_ONES 0x0101010101010101ULL
#define UP_HIGHS 0x8080808080808080ULL
#define UP_LOWER 0x2020202020202020ULL

/* The high bit of every byte of x that is a control character, DEL or not ASCII. */
UP_INLINE __u64 up_not_text(__u64 x)
{
	__u64 t = x & ~UP_HIGHS;

	return (~(t + 0x60 * UP_ONES) | (t + UP_ONES) | x) & UP_HIGHS;
}

/* Index of the lowest byte that has its high bit set in m; m is a non-zero up_not_text() (little endian). */
UP_INLINE __u32 up_first_byte(__u64 m)
{
	__u64 below = (m & -m) - 1;

	return (__u32)(((below & UP_ONES) * UP_ONES) >> 56) - 1;
}

struct up_u64 {
	__u64 v;
} __packed;
struct up_u32 {
	__u32 v;
} __packed;
struct up_u16 {
	__u16 v;
} __packed;
#define up_load64(p) (((const struct up_u64 *)(p))->v)
#define up_load32(p) (((const struct up_u32 *)(p))->v)
#define up_load16(p) (((const struct up_u16 *)(p))->v)

/* The lower-cased eight bytes at p: correct for names, whose bytes are tokens (see up_token). */
#define up_lower64(p) (up_load64(p) | UP_LOWER)
#define up_lower32(p) (up_load32(p) | 0x20202020u)
#define up_lower16(p) (up_load16(p) | 0x2020u)

/* Words as they stand in memory on a little-endian machine; both targets of this project are. */
#define UP_4(a, b, c, d) ((__u32)(a) | (__u32)(b) << 8 | (__u32)(c) << 16 | (__u32)(d) << 24)
#define UP_8(a, b, c, d, e, f, g, h) ((__u64)UP_4(a, b, c, d) | (__u64)UP_4(e, f, g, h) << 32)

/* FNV-1a of a lower-case name. Only a filter: whoever finds a hash compares the name as well. */
#define UP_HASH_START 2166136261u
UP_INLINE __u32 up_hash_step(__u32 h, __u8 c)
{
	return (h ^ c) * 16777619u;
}

#endif
