#!/bin/sh
# Installs steer from the directory of this script, or removes it. Repeat it with a newer version to upgrade: steering stays in force.
set -eu

usage() {
	echo "usage: install.sh [--root DIR] [--uninstall [--purge]]" >&2
	exit 2
}

fail() {
	echo "install.sh: $1" >&2
	exit 1
}

root=${DESTDIR:-} uninstall= purge=
while [ $# -gt 0 ]; do
	case $1 in
	--root) [ $# -ge 2 ] || usage; root=$2; shift ;;
	--uninstall) uninstall=yes ;;
	--purge) purge=yes ;;
	*) usage ;;
	esac
	shift
done
[ -z "$purge" ] || [ -n "$uninstall" ] || usage
root=${root%/}
here=$(cd "$(dirname "$0")" && pwd)
list=$root/usr/share/steer/files

# Only for the running system, not for a root that is prepared for another one.
systemd() {
	[ -n "$root" ] || [ ! -d /run/systemd/system ] || systemctl "$@"
}

# Removes a file of the list, and its directory if it is steer's own.
remove() {
	rm -f "$root/$1"
	directory=$(dirname "$1")
	while :; do
		case $directory in
		*/steer | */steer/*) rmdir "$root/$directory" 2>/dev/null || break ;;
		*) break ;;
		esac
		directory=$(dirname "$directory")
	done
}

if [ -n "$uninstall" ]; then
	[ -e "$list" ] || fail "$list is missing: this script has not installed steer there"
	systemd --quiet disable --now steer.service steer-nri.service || :
	if [ -z "$root" ] && [ -d /sys/fs/bpf/steer ]; then
		steer off || echo "install.sh: steering is partly in force until the next boot, or until /sys/fs/bpf/steer is removed" >&2
	fi
	files=$(cat "$list")
	for file in $files usr/share/steer/files; do
		remove "$file"
	done
	if [ -n "$purge" ]; then
		# The drop-ins of `steer unit`: without steer, their services would not start.
		for file in "$root"/etc/systemd/system/*.d/50-steer.conf; do
			if grep -qs '^# Written by `steer unit`' "$file"; then
				rm "$file"
				rmdir "$(dirname "$file")" 2>/dev/null || :
			fi
		done
		rm -rf "$root/etc/steer" "$root/run/steer"
	elif [ -e "$root/etc/steer" ]; then
		echo "kept $root/etc/steer; --purge removes it, and what \`steer unit\` has written"
	fi
	systemd daemon-reload
	exit
fi

[ -x "$here/usr/bin/steer" ] || fail "$here has no usr/bin/steer: run this script in the directory that the tarball contains"
if [ -z "$root" ]; then
	[ "$(id -u)" -eq 0 ] || fail "to install below /, this needs root"
	"$here/usr/bin/steer" --version >/dev/null || fail "the program does not run here; is the tarball for $(uname -m)?"
	if [ ! -e "$list" ] && [ -e /usr/bin/steer ]; then
		fail "/usr/bin/steer exists, and this script has not installed it: remove the package that did, first"
	fi
fi
before=$(cat "$list" 2>/dev/null || :)
files=$(cd "$here" && find usr -type f | sort)
for file in $files; do
	mode=644
	[ ! -x "$here/$file" ] || mode=755
	mkdir -p "$root/$(dirname "$file")"
	# A program that runs cannot be written to, but replaced.
	cp "$here/$file" "$root/$file.steer-new"
	chmod "$mode" "$root/$file.steer-new"
	mv -f "$root/$file.steer-new" "$root/$file"
done
for file in $before; do
	printf '%s\n' "$files" | grep -qxF "$file" || remove "$file"
done
printf '%s\n' "$files" >"$list"
if [ ! -e "$root/etc/steer/steer.toml" ]; then
	mkdir -p "$root/etc/steer"
	cp "$here/usr/share/steer/steer.toml" "$root/etc/steer/steer.toml"
	chmod 644 "$root/etc/steer/steer.toml"
fi
systemd daemon-reload
systemd try-restart steer.service steer-nri.service
if [ -n "$before" ]; then
	echo "upgraded; the configuration is as it was"
else
	echo "installed, and steers nothing yet. /usr/libexec/steer/steer-demo shows what it does; systemctl enable --now steer starts the daemon"
fi
