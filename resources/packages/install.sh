#!/bin/sh
# Installs the Debian packages of the given lists that are missing.
#
# Usage: install.sh LIST...
#
# Quiet when nothing is missing. Otherwise says what it installs before it does, as root or through a sudo that
# asks for no password; where neither is there it names the command and fails.
set -eu

packages=$(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$@")

if ! command -v dpkg-query >/dev/null; then
    echo "This is not a Debian system, so nothing is installed. What Debian calls these packages must be here:"
    echo "  $(echo $packages)"
    exit 0
fi

# dpkg-query fails when one of the packages was never heard of, which is an answer here and no error.
installed=$(dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' $packages 2>/dev/null |
    sed -n 's/^installed //p') || true
missing=
for package in $packages; do
    case "
$installed
" in *"
$package
"*) ;;
    *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=
elif sudo -n true 2>/dev/null; then
    as_root=sudo
else
    echo "Debian packages are missing, and installing them takes root. Please run as root:" >&2
    echo "  apt-get update && apt-get install$missing" >&2
    exit 1
fi

echo "Installing missing Debian packages:$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() {
    if ! $as_root env DEBIAN_FRONTEND=noninteractive "$@" >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        echo "This failed: $*" >&2
        exit 1
    fi
}
run apt-get update --quiet --quiet
run apt-get install --yes --quiet --quiet --no-install-recommends -o DPkg::Lock::Timeout=300 $missing
