# In storage of its own.
mount -t tmpfs tmpfs /run
mkdir -p "$PLACE/tmp"
printf '[containers]\npids_limit = 0\ndefault_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]\n[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n' >"$PLACE/containers.conf"
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s/storage"\nrunroot = "/run/storage"\n' "$PLACE" >"$PLACE/storage.conf"
export CONTAINERS_CONF=$PLACE/containers.conf CONTAINERS_STORAGE_CONF=$PLACE/storage.conf TMPDIR=$PLACE/tmp
podman load --input "$ARTEFACTS/steer-$VERSION-oci.tar"
image=docker.io/library/steer:$VERSION
[ "$(podman run --rm --network none "$image" --version)" = "steer $VERSION" ]
podman run --rm --privileged --network host --pid host --cgroupns host \
	--volume /sys/fs/bpf:/sys/fs/bpf --volume /sys/fs/cgroup:/sys/fs/cgroup \
	--entrypoint /usr/libexec/steer/steer-demo "$image"
podman rmi "$image"
