# Becomes a host of containers, in namespaces of its own. $1: an empty directory for its files. Says `ready`, and ends, with all that
# is in its cgroups, when its input does. Status 77 where such a host cannot be built.
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
# The root of a container: its programs are this machine's, bound to usr; the test's are in bed.
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
