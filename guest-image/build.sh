#!/bin/sh
# Joins the guest image: our kernel, our agent and an empty file system, packed as a versioned directory that nobody changes again.
#
# Usage: build.sh VMM GUEST_DIR
#
# VMM is the built binary, which writes the agent's EROFS image and the manifest. GUEST_DIR gets the version's
# directory, and its link `current` is flipped to it.
#
# The same inputs give the same digests, wherever the checkout lies. The kernel is cached outside the checkout by the
# digest of what it is built from (kernel/build.sh); the agent is left to cargo.
set -eu

vmm=$(realpath "$1")
guest_dir=$(realpath -m "$2")
here=$(cd "$(dirname "$0")" && pwd)
checkout=$(dirname "$here")
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-$checkout/target}")

kernel=$("$here/kernel/build.sh")

# Static, so that it runs on an image of its own with nothing beside it. No path of this machine gets into the binary:
# the directories of the checkout, of the dependencies' sources and of the toolchain are given names of their own.
echo "Building the agent" >&2
cd "$checkout"
triple=x86_64-unknown-linux-gnu
cargo fetch --quiet --locked --target "$triple"
RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static"
# What is read and what is executed in one huge page.
RUSTFLAGS="$RUSTFLAGS -C link-arg=-Wl,--no-rosegment,-z,max-page-size=0x200000,-T,guest-image/agent/text.ld"
RUSTFLAGS="$RUSTFLAGS --remap-path-prefix=$checkout=/vmm --remap-path-prefix=$(rustc --print sysroot)=/rust"
for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
    RUSTFLAGS="$RUSTFLAGS --remap-path-prefix=$registry=/registry"
done
export RUSTFLAGS
unset CARGO_ENCODED_RUSTFLAGS
cargo build --quiet --locked --package agent --profile agent --target "$triple" --target-dir "$target_dir"

echo "Packing the guest image" >&2
blank=$target_dir/blank.ext4
"$here/blank.sh" "$blank"
"$vmm" guest pack \
    --kernel "$kernel/vmlinux" \
    --kernel-release "$(cat "$kernel/release")" \
    --config "$kernel/config" \
    --agent "$target_dir/$triple/agent/agent" \
    --blank "$blank" \
    --output "$guest_dir"
