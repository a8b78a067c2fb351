#!/bin/sh
# Installs a cargo subcommand unless it is there; cargo keeps it for every checkout of this account.
#
# Usage: cargo-tool.sh cargo-NAME
set -eu

tool=$1
cargo "${tool#cargo-}" --version >/dev/null 2>&1 && exit 0

echo "Installing $tool by cargo (some minutes, once)"
# Not into this checkout's target directory: what the tool is built from would stay there.
unset CARGO_TARGET_DIR
cargo install --quiet --locked "$tool"
