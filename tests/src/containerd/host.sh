# Becomes a host of containerd, in namespaces of its own. $1: a directory for its files. Says `ready`, and ends, with
# all that runs on it, when its input does. Status 77 where such a host cannot be built.
set -e
trap 'exit 77' EXIT
mount -t proc proc /proc
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs run /run -o mode=755
mkdir /run/lock /run/netns
# What plugins of the network keep belongs to this host alone.
mkdir "$1/lib"
mount --bind "$1/lib" /var/lib
trap - EXIT
echo ready
cat > /dev/null
