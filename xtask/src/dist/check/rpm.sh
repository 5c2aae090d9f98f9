# In a root with a shell for the scriptlets, and nothing else.
root=$PLACE/root
mkdir -p "$root/bin"
for name in sh rm; do
	cp "$(command -v busybox)" "$root/bin/$name"
done
live "$root"
package=$ARTEFACTS/steer-$VERSION-1.$MACHINE.rpm
do_rpm() {
	rpm --root "$root" --dbpath /var/lib/rpm "$@"
}
do_rpm --initdb
# The database has no package with /bin/sh.
do_rpm --nodeps --install "$package"
do_rpm --nodeps --verify steer
[ "$(chroot "$root" /usr/bin/steer --version)" = "steer $VERSION" ]
demo "$root"
[ "$(do_rpm --query --requires steer | grep -v '^rpmlib\|^/bin/sh\|^config(')" = "" ] || fail "it requires more than a shell"

# Once more, as an upgrade: the configuration stays.
echo "# mine" >"$root/etc/steer/steer.toml"
do_rpm --nodeps --upgrade --replacepkgs "$package"
[ "$(cat "$root/etc/steer/steer.toml")" = "# mine" ]
echo "# Configuration" >"$root/etc/steer/steer.toml"
do_rpm --nodeps --erase steer
rm -f "$root"/etc/steer/steer.toml.rpmsave
rmdir "$root/etc/steer" 2>/dev/null || :
nothing_left "$root"
