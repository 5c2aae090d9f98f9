# Made from the recipe as a user, and installed in a root in which nothing else is.
root=$PLACE/root build=$PLACE/build
mkdir -p "$root/var/lib/pacman" "$build"
cp "$ARTEFACTS/PKGBUILD" "$ARTEFACTS/steer.install" "$ARTEFACTS/steer-$VERSION-$MACHINE-linux.tar.gz" "$build"
# The way there may be closed to other users.
mount -t tmpfs tmpfs /mnt
cp -r "$build" /mnt/build
chown -R nobody: /mnt/build
(cd /mnt/build && setpriv --reuid nobody --regid nogroup --clear-groups env HOME=/mnt/build makepkg --nodeps --force >/mnt/log 2>&1) ||
	fail "makepkg: $(cat /mnt/log)"
package=$(echo /mnt/build/steer-*.pkg.tar*)
live "$root"
do_pacman() {
	pacman --root "$root" --dbpath "$root/var/lib/pacman" --noconfirm "$@" >"$PLACE/pacman.log" 2>&1 || fail "pacman $*: $(cat "$PLACE/pacman.log")"
}
do_pacman --upgrade --nodeps --nodeps --noscriptlet "$package"
do_pacman --query --check --check steer
grep -q " 0 altered files" "$PLACE/pacman.log" || fail "$(cat "$PLACE/pacman.log")"
[ "$(chroot "$root" /usr/bin/steer --version)" = "steer $VERSION" ]
demo "$root"
echo "# mine" >"$root/etc/steer/steer.toml"
do_pacman --upgrade --nodeps --nodeps --noscriptlet "$package"
[ "$(cat "$root/etc/steer/steer.toml")" = "# mine" ]
do_pacman --remove --nosave --noscriptlet steer
nothing_left "$root"
