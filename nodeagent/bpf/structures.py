"""libbpf's option structures and the kernel's `bpf_*_info`, as ctypes: their layout is user-space ABI (linux/bpf.h).

Structs of *this project* are not typed here (`nodeagent.abi`). What an option structure does not name is zero.
"""

from __future__ import annotations

import ctypes as c

_u32, _u64, _int, _size, _ptr, _str = c.c_uint32, c.c_uint64, c.c_int, c.c_size_t, c.c_void_p, c.c_char_p


class ObjectOpenOpts(c.Structure):
    """libbpf's `struct bpf_object_open_opts`."""

    _fields_ = [
        ("sz", _size), ("object_name", _str), ("relaxed_maps", c.c_bool), ("pin_root_path", _str), ("unused", _u32),
        ("kconfig", _str), ("btf_custom_path", _str), ("kernel_log_buf", _ptr), ("kernel_log_size", _size),
        ("kernel_log_level", _u32),
    ]  # fmt: skip


class MapCreateOpts(c.Structure):
    """libbpf's `struct bpf_map_create_opts`."""

    _fields_ = [
        ("sz", _size), ("btf_fd", _u32), ("btf_key_type_id", _u32), ("btf_value_type_id", _u32),
        ("btf_vmlinux_value_type_id", _u32), ("inner_map_fd", _u32), ("map_flags", _u32), ("map_extra", _u64),
        ("numa_node", _u32), ("map_ifindex", _u32),
    ]  # fmt: skip


class BatchOpts(c.Structure):
    """libbpf's `struct bpf_map_batch_opts`."""

    _fields_ = [("sz", _size), ("elem_flags", _u64), ("flags", _u64)]


class TestRunOpts(c.Structure):
    """libbpf's `struct bpf_test_run_opts`."""

    _fields_ = [
        ("sz", _size), ("data_in", _ptr), ("data_out", _ptr), ("data_size_in", _u32), ("data_size_out", _u32),
        ("ctx_in", _ptr), ("ctx_out", _ptr), ("ctx_size_in", _u32), ("ctx_size_out", _u32), ("retval", _u32),
        ("repeat", _int), ("duration", _u32), ("flags", _u32), ("cpu", _u32), ("batch_size", _u32),
    ]  # fmt: skip


class TcHook(c.Structure):
    """libbpf's `struct bpf_tc_hook`."""

    _fields_ = [("sz", _size), ("ifindex", _int), ("attach_point", _int), ("parent", _u32)]


class TcOpts(c.Structure):
    """libbpf's `struct bpf_tc_opts`."""

    _fields_ = [
        ("sz", _size), ("prog_fd", _int), ("flags", _u32), ("prog_id", _u32), ("handle", _u32), ("priority", _u32)
    ]  # fmt: skip


class RawMapInfo(c.Structure):
    """The head of `struct bpf_map_info`; kernels fill as much as is asked for."""

    _fields_ = [
        ("type", _u32), ("id", _u32), ("key_size", _u32), ("value_size", _u32), ("max_entries", _u32),
        ("map_flags", _u32), ("name", c.c_char * 16),
    ]  # fmt: skip


class RawProgramInfo(c.Structure):
    """`struct bpf_prog_info` as far as verified_insns (Linux 5.16)."""

    _fields_ = [
        ("type", _u32), ("id", _u32), ("tag", c.c_uint8 * 8), ("jited_prog_len", _u32), ("xlated_prog_len", _u32),
        ("jited_prog_insns", _u64), ("xlated_prog_insns", _u64), ("load_time", _u64), ("created_by_uid", _u32),
        ("nr_map_ids", _u32), ("map_ids", _u64), ("name", c.c_char * 16), ("ifindex", _u32), ("gpl", _u32),
        ("netns_dev", _u64), ("netns_ino", _u64), ("nr_jited_ksyms", _u32), ("nr_jited_func_lens", _u32),
        ("jited_ksyms", _u64), ("jited_func_lens", _u64), ("btf_id", _u32), ("func_info_rec_size", _u32),
        ("func_info", _u64), ("nr_func_info", _u32), ("nr_line_info", _u32), ("line_info", _u64),
        ("jited_line_info", _u64), ("nr_jited_line_info", _u32), ("line_info_rec_size", _u32),
        ("jited_line_info_rec_size", _u32), ("nr_prog_tags", _u32), ("prog_tags", _u64), ("run_time_ns", _u64),
        ("run_cnt", _u64), ("recursion_misses", _u64), ("verified_insns", _u32),
    ]  # fmt: skip


class _LinkCgroup(c.Structure):
    _fields_ = [("cgroup_id", _u64), ("attach_type", _u32)]


class _LinkDevice(c.Structure):
    _fields_ = [("ifindex", _u32), ("attach_type", _u32)]


class _LinkUnion(c.Union):
    _fields_ = [("cgroup", _LinkCgroup), ("device", _LinkDevice), ("room", c.c_uint8 * 48)]


class RawLinkInfo(c.Structure):
    """`struct bpf_link_info` with the union members that this project reads."""

    _fields_ = [("type", _u32), ("id", _u32), ("prog_id", _u32), ("of", _LinkUnion)]
