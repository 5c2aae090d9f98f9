# With a daemon of its own, which ends with this script.
mount -t tmpfs tmpfs /run
printf 'version = 2\nroot = "%s/root"\nstate = "/run/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "/run/c.sock"\n' "$PLACE" >"$PLACE/config.toml"
containerd --config "$PLACE/config.toml" >"$PLACE/containerd.log" 2>&1 &
daemon=$!
trap 'kill $daemon; wait $daemon 2>/dev/null || :' EXIT
for _ in $(seq 200); do
	if ctr --address /run/c.sock version >/dev/null 2>&1; then break; fi
	kill -0 $daemon || fail "$(cat "$PLACE/containerd.log")"
	sleep 0.05
done
c() {
	ctr --address /run/c.sock "$@"
}
image=docker.io/library/steer:$VERSION
c images import --snapshotter native "$ARTEFACTS/steer-$VERSION-oci.tar"
[ "$(c run --rm --snapshotter native --cpu-shares 0 "$image" first /usr/bin/steer --version)" = "steer $VERSION" ]
c run --rm --snapshotter native --cpu-shares 0 --privileged --net-host \
	--mount type=bind,src=/sys/fs/bpf,dst=/sys/fs/bpf,options=rbind:rw --mount type=bind,src=/sys/fs/cgroup,dst=/sys/fs/cgroup,options=rbind:rw \
	"$image" second /usr/libexec/steer/steer-demo
