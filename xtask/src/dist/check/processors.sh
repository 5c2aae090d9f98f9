# The packages of the other processor have the files and modes of this one's, byte for byte, but for the programs, which are static ones of
# that processor.
case $MACHINE in
x86_64) other=aarch64 other_arch=arm64 ;;
*) other=x86_64 other_arch=amd64 ;;
esac
elf() {
	case $1 in
	x86_64) echo "Advanced Micro Devices X86-64" ;;
	*) echo "AArch64" ;;
	esac
}

# Unpacks a package of a processor: KIND MACHINE ARCH.
unpacked() {
	to=$PLACE/$1-$2
	mkdir "$to"
	case $1 in
	deb)
		dpkg-deb --raw-extract "$ARTEFACTS/steer_${VERSION}_$3.deb" "$to"
		# The sums of the programs, and the name of the processor.
		sed -i '/usr\/bin\/steer$/d; /steer-demo$/d' "$to/DEBIAN/md5sums"
		[ "$(sed -n 's/^Architecture: //p' "$to/DEBIAN/control")" = "$3" ] || fail "the package for $3 is of another processor"
		sed -i '/^Architecture: /d; /^Installed-Size: /d' "$to/DEBIAN/control"
		;;
	rpm)
		[ "$(rpm --query --package --queryformat '%{ARCH}' "$ARTEFACTS/steer-$VERSION-1.$2.rpm")" = "$2" ] || fail "the rpm for $2 is of another processor"
		for what in requires conflicts scripts configfiles; do
			rpm --query --package "--$what" "$ARTEFACTS/steer-$VERSION-1.$2.rpm" >>"$to/about"
		done
		bsdtar -xf "$ARTEFACTS/steer-$VERSION-1.$2.rpm" -C "$to"
		;;
	tarball) tar -xf "$ARTEFACTS/steer-$VERSION-$2-linux.tar.gz" --strip-components 1 -C "$to" ;;
	pacman)
		mount -t tmpfs tmpfs /mnt
		cp "$ARTEFACTS/PKGBUILD" "$ARTEFACTS/steer.install" "$ARTEFACTS/steer-$VERSION-$2-linux.tar.gz" /mnt
		sed "s/^CARCH=.*/CARCH=$2/; s/^CHOST=.*/CHOST=$2-linux-gnu/" /etc/makepkg.conf >/mnt/makepkg.conf
		chown -R nobody: /mnt
		(cd /mnt && setpriv --reuid nobody --regid nogroup --clear-groups env HOME=/mnt makepkg --config /mnt/makepkg.conf --nodeps --force >/mnt/log 2>&1) ||
			fail "makepkg for $2: $(cat /mnt/log)"
		bsdtar -xf /mnt/steer-*-"$2".pkg.tar* -C "$to"
		umount /mnt
		grep -qx "arch = $2" "$to/.PKGINFO" || fail "the package for $2 is of another processor"
		# The time at which it was made, and the name of the processor.
		rm "$to/.BUILDINFO" "$to/.MTREE"
		sed -i '/^arch = /d; /^builddate = /d; /^size = /d' "$to/.PKGINFO"
		;;
	image)
		python3 - "$ARTEFACTS/steer-$VERSION-oci.tar" "$3" "$to" <<-'PYTHON'
			import io, json, sys, tarfile
			archive, arch, to = sys.argv[1:]
			archive = tarfile.open(archive)
			read = lambda name: archive.extractfile("./" + name).read()
			blob = lambda entry: read("blobs/" + entry["digest"].replace(":", "/"))
			index = json.loads(blob(json.loads(read("index.json"))["manifests"][0]))
			entry, = [entry for entry in index["manifests"] if entry["platform"] == {"architecture": arch, "os": "linux"}]
			manifest = json.loads(blob(entry))
			config = json.loads(blob(manifest["config"]))
			assert config.pop("architecture") == arch
			del config["rootfs"]
			for layer in manifest["layers"]:
			    tarfile.open(fileobj=io.BytesIO(blob(layer))).extractall(to)
			json.dump(config, open(to + "/config.json", "w"))
		PYTHON
		;;
	esac
}

[ -e "$ARTEFACTS/steer_${VERSION}_$other_arch.deb" ] || {
	echo "report: not packed for $other_arch"
	exit
}
for kind in deb rpm tarball pacman image; do
	unpacked "$kind" "$MACHINE" "$DEB_ARCH"
	unpacked "$kind" "$other" "$other_arch"
	for machine in "$MACHINE" "$other"; do
		for program in usr/bin/steer usr/libexec/steer/steer-demo; do
			file=$PLACE/$kind-$machine/$program
			readelf --file-header --program-headers "$file" >"$PLACE/elf"
			grep -q "Machine: *$(elf "$machine")\$" "$PLACE/elf" || fail "$kind for $machine: $program is of another processor"
			! grep -q INTERP "$PLACE/elf" || fail "$kind for $machine: $program needs libraries"
			# Its mode is compared, and not its content.
			: >"$file"
		done
		(cd "$PLACE/$kind-$machine" && find . -printf '%P %y %m\n' | sort) >"$PLACE/$kind-$machine.list"
	done
	diff "$PLACE/$kind-$MACHINE.list" "$PLACE/$kind-$other.list" >"$PLACE/diff" || fail "$kind: files or modes differ: $(cat "$PLACE/diff")"
	diff --recursive "$PLACE/$kind-$MACHINE" "$PLACE/$kind-$other" >"$PLACE/diff" || fail "$kind: contents differ: $(cat "$PLACE/diff")"
	echo "report: $kind: $(wc -l <"$PLACE/$kind-$other.list") files and directories are the same"
done
