# In a root in which nothing else is.
root=$PLACE/root
mkdir "$root"
tar -C "$PLACE" -xf "$ARTEFACTS/steer-$VERSION-$MACHINE-linux.tar.gz"
install=$PLACE/steer-$VERSION-$MACHINE-linux/install.sh
"$install" --root "$root"
live "$root"
[ "$(chroot "$root" /usr/bin/steer --version)" = "steer $VERSION" ]
chroot "$root" /usr/bin/steer check --config /etc/steer/steer.toml
demo "$root"

# Again, as an upgrade: the configuration stays, and a file that is no longer shipped goes.
echo "# mine" >"$root/etc/steer/steer.toml"
mkdir -p "$root/usr/share/steer/old"
touch "$root/usr/share/steer/old/file"
echo usr/share/steer/old/file >>"$root/usr/share/steer/files"
DESTDIR=$root "$install"
[ "$(cat "$root/etc/steer/steer.toml")" = "# mine" ]
[ ! -e "$root/usr/share/steer/old" ] || fail "a file of the version before is left"

"$install" --root "$root" --uninstall
[ -e "$root/etc/steer/steer.toml" ] || fail "the configuration is gone"
"$install" --root "$root" --uninstall 2>/dev/null && fail "removed twice"
"$install" --root "$root"
mkdir -p "$root/etc/systemd/system/x.service.d"
echo '# Written by `steer unit`' >"$root/etc/systemd/system/x.service.d/50-steer.conf"
"$install" --root "$root" --uninstall --purge
nothing_left "$root"
