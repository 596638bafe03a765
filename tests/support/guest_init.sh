#!/bin/bash
# Process 1 of the little machine in which tests/support/guest.py runs a command on another kernel: mounts what the data
# path needs, runs the command that lies in the shared directory, leaves its status there, and switches the machine off.
# In place of virtme-ng's own init, which starts udev: without KVM that alone takes half a minute.
# The root is this machine's, read-only; what is written goes to memory, or to the shared directory.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
[[ -e /dev/fd ]] || ln -s /proc/self/fd /dev/fd
mkdir -p -m 1777 /run/tmp
mkdir -p /run/netns /run/shared
[[ -n "${KEEP_TMP:-}" ]] || mount --bind /run/tmp /tmp
export HOME=/run/tmp TMPDIR=/run/tmp
modprobe -a tun veth bridge 2>/dev/null
ip link set lo up
if mount -t 9p -o version=9p2000.L,trans=virtio,msize=262144 shared /run/shared; then
	bash /run/shared/command >/run/shared/output 2>&1 </dev/null
	echo $? >/run/shared/status
	sync
fi
echo o >/proc/sysrq-trigger
sleep 60
