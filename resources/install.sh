#!/bin/sh
# Puts binary, guest image, unit files, completions and man pages where they belong.
#
# Usage: install.sh VMM GUEST_DIR PREFIX
#
# The guest image's version gets a directory of its own and the link `current` is flipped to it, so an older version
# stays for `vmm guest rollback` and for the machines that run on it.
set -eu
umask 022

vmm=$1
guest=$2
prefix=$3

install -d "$prefix/bin"
install -m 755 "$vmm" "$prefix/bin/.vmm.new"
mv "$prefix/bin/.vmm.new" "$prefix/bin/vmm"

version=$(readlink "$guest/current")
versions=$prefix/share/vmm/guest
install -d "$versions"
if ! [ -d "$versions/$version" ]; then
    rm -rf "$versions/.new"
    install -d "$versions/.new"
    install -m 644 "$guest/$version"/* "$versions/.new"
    mv "$versions/.new" "$versions/$version"
fi
current=$(readlink "$versions/current" || true)
if [ "$current" != "$version" ]; then
    if [ -n "$current" ]; then
        ln -s "$current" "$versions/.previous.new"
        mv -T "$versions/.previous.new" "$versions/previous"
    fi
    ln -s "$version" "$versions/.current.new"
    mv -T "$versions/.current.new" "$versions/current"
fi

for manager in system user; do
    install -d "$prefix/lib/systemd/$manager"
    install -m 644 "$(dirname "$0")/systemd/$manager/vmm-restore.service" "$prefix/lib/systemd/$manager"
done

completion() {
    install -d "$(dirname "$2")"
    "$vmm" completion "$1" >"$2"
}
completion bash "$prefix/share/bash-completion/completions/vmm"
completion zsh "$prefix/share/zsh/site-functions/_vmm"
completion fish "$prefix/share/fish/vendor_completions.d/vmm.fish"

install -d "$prefix/share/man/man1"
"$vmm" man "$prefix/share/man/man1"

echo "Installed vmm and guest image $version below $prefix"
