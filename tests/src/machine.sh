# Becomes PID 1 of a machine. $1: an empty directory for its root; $2: a directory to share with it; $3: the lower root of
# the overlay. Exit status 77: the root cannot be built here.
set -e
trap 'exit 77' EXIT
mount -t tmpfs machine "$1"
mkdir "$1/upper" "$1/work" "$1/root"
root=$1/root
mount -t overlay machine -o "lowerdir=$3,upperdir=$1/upper,workdir=$1/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t bpf bpf "$root/sys/fs/bpf" -o mode=700
mount -t securityfs securityfs "$root/sys/kernel/security"
mount -t tmpfs run "$root/run" -o mode=755
mount -t tmpfs dev "$root/dev" -o mode=755
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t devpts devpts "$root/dev/pts" -o newinstance,ptmxmode=0666
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for device in null zero full random urandom tty; do
	touch "$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -p "$root$2" "$root/run/changed" "$root/run/systemd/system"
mount --bind "$2" "$root$2"
mount --bind "$1/upper" "$root/run/changed"
# No service may mount over /tmp or clear it.
for unit in tmp.mount systemd-tmpfiles-setup.service; do
	ln -s /dev/null "$root/run/systemd/system/$unit"
done
# Generators that make units of a real machine's devices take most of the boot time.
mkdir "$root/run/systemd/system-generators"
for generator in "$root"/usr/lib/systemd/system-generators/*; do
	ln -s /dev/null "$root/run/systemd/system-generators/${generator##*/}"
done
# The bus must not wait for a whole system.
for unit in dbus.socket dbus.service; do
	mkdir "$root/run/systemd/system/$unit.d"
	printf '[Unit]\nDefaultDependencies=no\n' > "$root/run/systemd/system/$unit.d/early.conf"
done
# Packages start their services.
rm -f "$root/usr/sbin/policy-rc.d"
printf '[Unit]\nDefaultDependencies=no\nWants=systemd-journald.service\n' > "$root/run/systemd/system/machine.target"
cd "$root"
pivot_root . mnt
umount -l /mnt
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=machine.target --show-status=no
