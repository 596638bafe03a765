// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* tc_workload_old.bpf.c - the same programs for kernels before 6.2, see context.h. */
#define UP_NO_KERNEL_CONTEXT
#include "tc_workload.bpf.c"
