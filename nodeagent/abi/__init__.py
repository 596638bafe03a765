"""The shared structures of kernel/include/abi.h as Python values.

`layout` and `numbers` are generated (`python -m tests.support.abi_layout --write`) and compared with the built objects'
BTF in a test; `records` names the structures' fields as types; `codec` turns one into the other.
"""
