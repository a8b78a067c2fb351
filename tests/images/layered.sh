#!/bin/sh
# Makes an OCI archive of eight gzip layers on Debian's static busybox, whiteouts among them, with buildah.
# Usage: layered.sh OUTPUT
set -eu
output=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/context/base/bin" "$scratch/context/base/etc" "$scratch/context/base/tmp"
cp "$(command -v busybox)" "$scratch/context/base/bin/busybox"
for applet in $(busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$scratch/context/base/bin/$applet"
done
echo 'root:x:0:0:root:/root:/bin/sh' >"$scratch/context/base/etc/passwd"
cat >"$scratch/context/Containerfile" <<'STEPS'
FROM scratch
ADD base /
RUN mkdir /data && echo one > /data/one && echo two > /data/two && echo three > /data/three
RUN rm /data/two
RUN mkdir /deep && mkdir /deep/a && echo old > /deep/a/file && ln /data/one /deep/hard
RUN rm -r /deep/a && mkdir /deep/a && echo new > /deep/a/other
RUN rm -r /data/three && mkdir /data/three && echo inside > /data/three/file
RUN rm -r /data/three && echo again > /data/three && chmod 4755 /data/three && chown 1000:50 /data/one
RUN echo changed >> /data/one && ln -s one /data/link
CMD ["sh", "-c", "cd /; cat /data/one /data/three /deep/a/other; ls /data /deep/a"]
STEPS
store="--root $scratch/store --runroot $scratch/run --storage-driver overlay"
buildah $store bud --quiet --isolation chroot --layers --tag layered "$scratch/context" >"$scratch/log" 2>&1 ||
    { cat "$scratch/log" >&2; exit 1; }
buildah $store push --quiet localhost/layered "oci-archive:$output:layered:latest"
