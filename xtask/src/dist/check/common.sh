# What the scripts share. ARTEFACTS has what is tested, PLACE is empty.
set -o pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C

fail() {
	echo "$*" >&2
	exit 1
}

# Gives a root what the kernel offers. The mounts end with this script.
live() {
	mkdir -p "$1/proc" "$1/sys" "$1/dev" "$1/tmp"
	for directory in proc sys dev; do
		mount --rbind "/$directory" "$1/$directory"
	done
}

# The files and directories of a root, apart from what packages' own administration keeps.
listed() {
	find "$1" -xdev \( -path "$1/var/lib/dpkg" -o -path "$1/var/cache" -o -path "$1/var/log" -o -path "$1/var/lib/rpm" -o -path "$1/usr/lib/sysimage" \
		-o -path "$1/var/lib/pacman" -o -path "$1/var/lib/apt" -o -path "$1/var/lib/systemd" -o -path "$1/tmp" -o -path "$1/dev" \) -prune -o -print | sort
}

# Nothing may be left of steer.
nothing_left() {
	left=$(listed "$1" | grep -i steer | grep -v '^'"$1"'/\(proc\|sys\|dev\)/' || :)
	[ -z "$left" ] || fail "left behind: $left"
}

demo() {
	chroot "$1" /usr/libexec/steer/steer-demo >"$PLACE/demo.log" 2>&1 || fail "the demonstration: $(cat "$PLACE/demo.log")"
}
