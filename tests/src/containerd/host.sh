# Becomes a host of containerd, in its own namespaces. $1: a directory for its files. Prints `ready`. When its input
# closes, it ends with all its processes. Exit status 77: such a host cannot be built here.
set -e
trap 'exit 77' EXIT
mount -t proc proc /proc
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs run /run -o mode=755
mkdir /run/lock /run/netns
# The state of network plugins belongs to this host only.
mkdir "$1/lib"
mount --bind "$1/lib" /var/lib
trap - EXIT
echo ready
cat > /dev/null
