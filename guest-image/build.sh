#!/bin/sh
# Joins the guest image: our kernel and our agent, packed as a versioned directory that nobody changes again.
#
# Usage: build.sh VMM GUEST_DIR
#
# VMM is the built binary, which writes the agent's EROFS image and the manifest. GUEST_DIR gets the version's
# directory, and its link `current` is flipped to it.
#
# The same inputs give the same digests, wherever the checkout lies. The kernel is cached outside the checkout by the
# digest of what it is built from (kernel/build.sh); the agent is left to cargo.
set -eu

vmm=$1
guest_dir=$2
here=$(cd "$(dirname "$0")" && pwd)
checkout=$(dirname "$here")
target_dir=${CARGO_TARGET_DIR:-$checkout/target}

kernel=$("$here/kernel/build.sh")

# Static, so that it runs on an image of its own with nothing beside it. No path of this machine gets into the binary:
# the directories of the checkout, of the registry's sources and of the toolchain are given other names.
echo "Building the agent" >&2
triple=x86_64-unknown-linux-gnu
RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static"
RUSTFLAGS="$RUSTFLAGS --remap-path-prefix=$checkout=/vmm"
RUSTFLAGS="$RUSTFLAGS --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
RUSTFLAGS="$RUSTFLAGS --remap-path-prefix=$(rustc --print sysroot)=/rust"
export RUSTFLAGS
unset CARGO_ENCODED_RUSTFLAGS
(cd "$checkout" &&
    cargo build --quiet --locked --package agent --profile agent --target "$triple" --target-dir "$target_dir")

echo "Packing the guest image" >&2
"$vmm" guest pack \
    --kernel "$kernel/vmlinux" \
    --kernel-release "$(cat "$kernel/release")" \
    --config "$kernel/config" \
    --agent "$target_dir/$triple/agent/agent" \
    --output "$guest_dir"
