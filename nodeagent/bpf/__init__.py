"""The kernel edge: maps, programs, links and objects of BPF behind Protocols (`abc`), real (`kernel`) and `fake`."""
