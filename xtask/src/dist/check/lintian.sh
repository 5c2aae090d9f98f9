# Errors fail; warnings are reported.
# Static on purpose: one program for every system. The project has no address of a maintainer. The changelog is the project's own.
suppressed=statically-linked-binary,malformed-contact,syntax-error-in-debian-changelog,wrong-name-for-changelog-of-native-package
for package in "$ARTEFACTS"/*.deb; do
	lintian --allow-root --fail-on error --suppress-tags "$suppressed" "$package" >"$PLACE/lintian.log" 2>&1 || fail "$(cat "$PLACE/lintian.log")"
	sed "s/^/report: $(basename "$package"): /" "$PLACE/lintian.log"
done
