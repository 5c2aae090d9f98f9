# Runs a command in a Debian root, on an overlay of its own. $1: an empty directory for its mounts; $2: a directory to share
# with it, as /shared; $3: the root; $4: user and group; the rest: the command. Exit status 77: the overlay cannot be made here.
set -e
trap 'exit 77' EXIT
mount -t tmpfs debian "$1"
mkdir "$1/upper" "$1/work" "$1/root"
root=$1/root
mount -t overlay debian -o "lowerdir=$3,upperdir=$1/upper,workdir=$1/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs run "$root/run" -o mode=755
mount -t tmpfs tmp "$root/tmp" -o mode=1777
mount -t tmpfs dev "$root/dev" -o mode=755
mkdir "$root/dev/shm" "$root/dev/pts" "$root/run/lock"
chmod 1777 "$root/dev/shm"
mount -t devpts devpts "$root/dev/pts" -o newinstance,ptmxmode=0666
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for device in null zero full random urandom tty; do
	touch "$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/shared"
mount --bind "$2" "$root/shared"
# No resolver: requests fail at once.
rm -f "$root/etc/resolv.conf"
echo 'nameserver 127.0.0.1' > "$root/etc/resolv.conf"
user=$4
shift 4
trap - EXIT
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LANG=C.UTF-8 chroot --userspec="$user" "$root" sh -c 'cd /tmp && exec "$@"' sh "$@"
