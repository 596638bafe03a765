"""`make bench`: no mesh, the kernel's road, Envoy and HAProxy against each other on this machine.

Everything is measured from outside, by the same client against the same servers, path after path within each round, so
that a machine that gets slower slows all of them. What a path is: `roads`. What is asked of it: `scenarios`. What comes
out: `report`.
"""
