#!/bin/sh
# Makes an OCI archive of a program in Debian's python as a builder makes it, of four layers: the base system, python, what the
# program depends on, and the program. mmdebstrap for the base system, buildah for the rest.
# Usage: python-app.sh OUTPUT
set -eu
output=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/context/app"
mmdebstrap --quiet --variant=minbase bookworm "$scratch/context/base.tar"
echo 'print(1)' >"$scratch/context/app/main.py"
cat >"$scratch/context/Containerfile" <<'STEPS'
FROM scratch
ADD base.tar /
RUN apt-get update -qq && apt-get install -qq --no-install-recommends python3-minimal libpython3-stdlib && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*
RUN apt-get update -qq && apt-get install -qq --no-install-recommends python3-requests python3-yaml && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*
COPY app /app
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["python3", "/app/main.py"]
STEPS
store="--root $scratch/store --runroot $scratch/run --storage-driver overlay"
DEBIAN_FRONTEND=noninteractive buildah $store bud --quiet --isolation chroot --layers --tag python-app "$scratch/context" \
    >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; exit 1; }
buildah $store push --quiet localhost/python-app "oci-archive:$output:python-app:latest"
