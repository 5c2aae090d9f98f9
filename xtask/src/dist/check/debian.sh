# In a fresh root of Debian, over which what changes is laid.
mkdir "$PLACE/over"
mount -t tmpfs tmpfs "$PLACE/over"
mkdir "$PLACE/over/upper" "$PLACE/over/work" "$PLACE/root"
root=$PLACE/root
mount -t overlay overlay -o "lowerdir=$DEBIAN,upperdir=$PLACE/over/upper,workdir=$PLACE/over/work" "$root"
live "$root"
cp "$ARTEFACTS/steer_${VERSION}_$DEB_ARCH.deb" "$root/tmp/steer.deb"
apt() {
	DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -qq --yes "$@" >"$PLACE/apt.log" 2>&1 || fail "apt-get $*: $(cat "$PLACE/apt.log")"
}

# The package makes a group by it, and it is not in every minimal root.
apt install adduser
listed "$root" >"$PLACE/before"
# It must need nothing else.
apt install /tmp/steer.deb
grep -q "^0 upgraded, 1 newly installed" "$PLACE/apt.log" || ! grep -q "newly installed" "$PLACE/apt.log" || fail "it needs more: $(cat "$PLACE/apt.log")"
[ "$(chroot "$root" steer --version)" = "steer $VERSION" ]
chroot "$root" steer check --config /etc/steer/steer.toml
demo "$root"
chroot "$root" dpkg --verify steer

# A newer one: the configuration stays. Then an older one, which is refused without a word for it.
echo "# mine" >"$root/etc/steer/steer.toml"
dpkg-deb --raw-extract "$root/tmp/steer.deb" "$PLACE/next"
sed -i "s/^Version: .*/&+next/" "$PLACE/next/DEBIAN/control"
dpkg-deb -Znone --root-owner-group --build "$PLACE/next" "$root/tmp/next.deb" >/dev/null
apt install /tmp/next.deb
if (apt install /tmp/steer.deb) 2>/dev/null; then fail "a downgrade was not refused"; fi
apt install --allow-downgrades /tmp/steer.deb
[ "$(cat "$root/etc/steer/steer.toml")" = "# mine" ]

apt remove steer
[ -e "$root/etc/steer/steer.toml" ] || fail "the configuration is gone"
apt purge steer
rm "$root/tmp/steer.deb" "$root/tmp/next.deb"
# The group stays. What making it has left is no file of the package.
rm -rf "$root/etc/group-" "$root/etc/gshadow-" "$root/run/adduser"
sed -i "\\|^$root/etc/group-\$|d; \\|^$root/etc/gshadow-\$|d; \\|^$root/run/adduser|d" "$PLACE/before"
umount -l "$root/proc" "$root/sys" "$root/dev"
nothing_left "$root"
listed "$root" | diff "$PLACE/before" - >"$PLACE/diff" || fail "left behind or missing: $(cat "$PLACE/diff")"
