#!/bin/sh
# Makes an OCI archive of Debian's python3: mmdebstrap for the files, buildah for the image.
# Usage: python3.sh OUTPUT
set -eu
output=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mmdebstrap --quiet --variant=essential --include=python3-minimal,libpython3-stdlib bookworm "$scratch/root.tar"
store="--root $scratch/store --runroot $scratch/run --storage-driver overlay"
container=$(buildah $store from scratch)
buildah $store add --quiet "$container" "$scratch/root.tar" /
buildah $store config --cmd '["python3"]' --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
buildah $store commit --quiet --rm "$container" "oci-archive:$output:python3:latest"
