// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* features_context.bpf.c - whether tc programs are handed the kernel's own sk_buff (context.h). By itself, because an object that
 * names a function which the kernel has not got does not load at all. */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

extern void *bpf_cast_to_kern_ctx(void *obj) __ksym;
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym;

/* Returns 1 + the packet's length, which the caller knows. */
SEC("tc") int ft_context(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct sk_buff *again = bpf_rdonly_cast(k, bpf_core_type_id_kernel(struct sk_buff));

	return 1 + again->len;
}
