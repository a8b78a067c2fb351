#!/busybox sh
# The lab's PID 1: makes a KVM and the usual mounts, and goes on as /lab/session in the lab's own root.
b=/busybox
for module in /modules/*; do $b insmod "$module"; done

# A mount of its own, moved to the top: pivot_root(2), which container runtimes use, refuses to leave an initramfs.
$b mount -o bind /lab-root /lab-root
cd /lab-root
$b mkdir -p proc sys dev tmp run
$b mount -t proc proc proc
$b mount -t sysfs sysfs sys
# favordynmods: without it a process that enters a cgroup now and then waits for a grace period.
$b mount -t cgroup2 -o favordynmods cgroup2 sys/fs/cgroup
$b mount -t debugfs debugfs sys/kernel/debug
$b mount -t tracefs tracefs sys/kernel/tracing
$b mount -t devtmpfs devtmpfs dev
$b mkdir -p dev/pts dev/shm
$b mount -t devpts -o ptmxmode=0666 devpts dev/pts
$b mount -t tmpfs tmpfs dev/shm
$b ln -s /proc/self/fd dev/fd
$b ln -s /proc/self/fd/0 dev/stdin
$b ln -s /proc/self/fd/1 dev/stdout
$b ln -s /proc/self/fd/2 dev/stderr
# No mount: what was put in may lie there. The root is in memory itself.
$b chmod 1777 tmp
$b mount -o move . /
exec $b chroot . /lab/busybox sh /lab/session
