# Becomes a host of containers, in its own namespaces. $1: an empty directory for its files. Prints `ready`. When its input
# closes, it ends with all processes in its cgroups. Exit status 77: such a host cannot be built here.
set -e
trap 'exit 77' EXIT
# The pins are those of the test.
mkdir "$1/bpf"
mount --bind /sys/fs/bpf "$1/bpf"
umount -R /sys/fs/cgroup
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --move "$1/bpf" /sys/fs/bpf
mount -t tmpfs run /run -o mode=755
mkdir -p /run/lock /run/netns "$1/var"
mount --bind "$1/var" /var/lib
# The root of a container: usr is for this machine's programs, bed for the test's.
for directory in bed dev etc proc run sys tmp usr var; do
	mkdir -p "$1/rootfs/$directory"
done
for link in bin lib lib64 sbin; do
	[ ! -L "/$link" ] || cp -P "/$link" "$1/rootfs/"
done
mkdir /sys/fs/cgroup/runtime
echo 0 > /sys/fs/cgroup/runtime/cgroup.procs
trap - EXIT
echo ready
cat > /dev/null
echo 1 > /sys/fs/cgroup/cgroup.kill
