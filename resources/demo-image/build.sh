#!/bin/sh
# Makes the demo image: an OCI archive with Debian's static busybox and a greeting.
#
# Usage: build.sh FILE.oci
#
# Needs tar, sha256sum and /bin/busybox of the package busybox-static. The same busybox gives the same bytes: names
# are sorted, owners are root, times are the epoch, and nothing is compressed.
set -eu
LC_ALL=C
export LC_ALL

output=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022

# Packs the directory $1 into the file $2.
pack() {
    tar --create --file "$2" --directory "$1" --format ustar --sort name \
        --owner 0 --group 0 --numeric-owner --mtime @0 .
}

# Moves the file $1 to where the layout $layout has the blob with its digest; prints the digest.
blob() {
    digest=$(sha256sum "$1" | cut -d ' ' -f 1)
    mv "$1" "$layout/blobs/sha256/$digest"
    echo "sha256:$digest"
}

# Prints the size of the blob with the digest $1.
size() {
    stat -c %s "$layout/blobs/sha256/${1#sha256:}"
}

layout=$work/layout
mkdir -p "$layout/blobs/sha256"

# The root file system: busybox, a link for each of its applets, and what programs look for.
root=$work/root
mkdir -p "$root/bin" "$root/etc" "$root/home" "$root/root" "$root/usr" "$root/var"
mkdir -m 1777 "$root/tmp" "$root/var/tmp"
ln -s ../bin "$root/usr/bin"
ln -s bin "$root/sbin"
install -m 755 /bin/busybox "$root/bin/busybox"
for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
cat >"$root/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
END
cat >"$root/etc/group" <<'END'
root:x:0:
nogroup:x:65534:
END
cat >"$root/bin/hello" <<'END'
#!/bin/sh
# Only what the shell itself can do: a host without hardware virtualisation feels every fork of a guest.
read -r _ _ release _ </proc/version
read -r _ kilobytes _ </proc/meminfo
echo "Hello from a microVM of its own: Linux $release, $((kilobytes / 1024)) MiB, process $$."
END
chmod 755 "$root/bin/hello"

pack "$root" "$work/layer.tar"
layer=$(blob "$work/layer.tar")

cat >"$work/config.json" <<END
{"architecture":"amd64","os":"linux","created":"1970-01-01T00:00:00Z","config":{"Env":["PATH=/bin"],"Cmd":["/bin/hello"],"WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":["$layer"]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"busybox-static"}]}
END
config=$(blob "$work/config.json")

cat >"$work/manifest.json" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"$config","size":$(size "$config")},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"$layer","size":$(size "$layer")}]}
END
manifest=$(blob "$work/manifest.json")

cat >"$layout/index.json" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"$manifest","size":$(size "$manifest"),"platform":{"architecture":"amd64","os":"linux"},"annotations":{"org.opencontainers.image.ref.name":"demo:latest"}}]}
END
echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"

# The name appears at once and whole.
mkdir -p "$(dirname "$output")"
pack "$layout" "$work/archive"
mv "$work/archive" "$output.new"
mv "$output.new" "$output"
