#!/bin/bash
# Builds the guest kernel, once for each set of inputs, and prints the directory
# that holds it on standard output:
#   vmlinux   the stripped ELF file, its segments page by page as in memory
#   config    the configuration it was built with
#   release   what uname -r says in the guest
# Everything else (progress, errors) goes to standard error.
#
#   build.sh            build unless it is in the cache
#   build.sh --key      print the digest of the inputs and build nothing
#   build.sh --force    build even if it is in the cache (and compare: two
#                       builds of the same inputs must not differ)
#   build.sh --debug    build another kernel, which also has what debug.config
#                       adds: `make profile` takes the boot apart with it
#
# The cache is ${XDG_CACHE_HOME:-$HOME/.cache}/vmm/kernel/KEY. VMM_KERNEL_SOURCE
# names another source archive, VMM_BUILD_JOBS the number of compilers.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source_archive=${VMM_KERNEL_SOURCE:-/usr/src/linux-source-6.1.tar.xz}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vmm/kernel
jobs=${VMM_BUILD_JOBS:-$(nproc)}

# How many lines of progress make prints for this configuration.
readonly EXPECTED_STEPS=1780
readonly REPORT_EVERY_SECONDS=10

die() {
	printf 'kernel build: %s\n' "$1" >&2
	[[ $# -lt 2 ]] || printf 'help: %s\n' "$2" >&2
	exit 1
}

require_packages() {
	local package missing=()
	while read -r package; do
		dpkg-query -W -f='${Status}' "$package" 2>/dev/null |
			grep -q ' installed$' || missing+=("$package")
	done <"$here/packages"
	[[ ${#missing[@]} -eq 0 ]] ||
		die "Debian packages are missing: ${missing[*]}" \
			"apt-get install ${missing[*]}"
}

# The digest of everything that the result depends on.
inputs_key() {
	{
		sha256sum <"$source_archive"
		gcc --version | head -n 1
		ld --version | head -n 1
		cd "$here"
		sha256sum "${fragments[@]}" build.sh patches/*.patch
	} | sha256sum | cut -d ' ' -f 1
}

# Reads make's output, shows how far it is, keeps it in the log.
show_progress() {
	local log=$1 line steps=0 percent last=$SECONDS
	while IFS= read -r line; do
		printf '%s\n' "$line" >>"$log"
		[[ $line == '  '[A-Z]* ]] || continue
		steps=$((steps + 1))
		percent=$((steps * 100 / EXPECTED_STEPS))
		[[ $percent -lt 99 ]] || percent=99
		if [[ -t 2 ]]; then
			printf '\rkernel build: %2d %%' "$percent" >&2
		elif ((SECONDS - last >= REPORT_EVERY_SECONDS)); then
			printf 'kernel build: %2d %%\n' "$percent" >&2
			last=$SECONDS
		fi
	done
	[[ ! -t 2 ]] || printf '\r\033[K' >&2
}

# Builds in the directory $1 and leaves the three files in the directory $2.
build() {
	local tree=$1 result=$2 log=$2/log patch

	# Nothing of the place or the time of the build gets into the result.
	export KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC'
	export KBUILD_BUILD_USER=vmm KBUILD_BUILD_HOST=vmm KBUILD_BUILD_VERSION=1
	export SOURCE_DATE_EPOCH=0
	unset MAKEFLAGS MFLAGS ARCH CROSS_COMPILE CC LD KCFLAGS KCPPFLAGS \
		LOCALVERSION KBUILD_OUTPUT

	echo 'kernel build: unpacking the source' >&2
	tar -C "$tree" -xf "$source_archive" --strip-components=1
	for patch in "$here"/patches/*.patch; do
		patch -d "$tree" -p1 --forward --fuzz=0 --silent <"$patch" >>"$log" ||
			die "${patch##*/} does not apply to $source_archive"
	done

	(cd "$here" && cat "${fragments[@]}") >"$tree/fragments"
	make -C "$tree" KCONFIG_ALLCONFIG=fragments allnoconfig \
		>>"$log" 2>&1 || {
		tail -n 20 "$log" >&2
		die 'the configuration cannot be made'
	}
	"$here/check-config" "$tree/.config" "${fragments[@]}" || die 'the configuration is not what was asked for'

	echo 'kernel build: compiling' >&2
	make -C "$tree" -j "$jobs" vmlinux 2>&1 | show_progress "$log" || {
		tail -n 40 "$log" >&2
		die 'the compilation failed; the end of its log is above'
	}

	objcopy --strip-all "$tree/vmlinux" "$result/vmlinux"
	check_segments "$result/vmlinux"
	cp "$tree/.config" "$result/config"
	make -C "$tree" -s kernelrelease >"$result/release"
	rm "$log"
}

# The VMM maps the file into guest memory, so every loadable segment must lie
# in the file as it lies in its page.
check_segments() {
	local type offset _virtual physical in_file in_memory _rest
	readelf --program-headers --wide "$1" |
		while read -r type offset _virtual physical in_file in_memory _rest; do
			[[ $type == LOAD ]] || continue
			(((offset & 4095) == (physical & 4095))) ||
				die "a segment of vmlinux at file offset $offset cannot be mapped to $physical"
			((in_file == in_memory || (in_file & 4095) == 0)) ||
				die "a segment of vmlinux at file offset $offset is cleared from within a page"
		done
}

force=false
fragments=(fragment.config)
for argument; do
	case $argument in
	--key) key_only=true ;;
	--force) force=true ;;
	--debug) fragments+=(debug.config) ;;
	*) die "unknown argument $argument" 'build.sh [--key | --force] [--debug]' ;;
	esac
done

require_packages
[[ -r $source_archive ]] || die "cannot read $source_archive" 'apt-get install linux-source-6.1'
key=$(inputs_key)
if [[ ${key_only-} ]]; then
	echo "$key"
	exit
fi

mkdir -p "$cache"
if [[ $force == false && -e $cache/$key/release ]]; then
	echo "$cache/$key"
	exit
fi

# One build at a time; whoever waited finds the other's result.
exec {lock}>"$cache/lock"
if ! flock --nonblock "$lock"; then
	echo 'kernel build: another build is running, waiting for it' >&2
	flock "$lock"
fi
if [[ $force == false && -e $cache/$key/release ]]; then
	echo "$cache/$key"
	exit
fi

# What a build that was killed left behind: nobody else holds the lock.
rm -rf "$cache"/build.*
work=$(mktemp -d "$cache/build.XXXXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/tree" "$work/result"
build "$work/tree" "$work/result" {lock}>&-

if [[ -e $cache/$key/release ]]; then
	for file in vmlinux config release; do
		cmp "$work/result/$file" "$cache/$key/$file" >&2 ||
			die "$file differs from the one in $cache/$key: the build is not reproducible"
	done
else
	rm -rf "${cache:?}/$key"
	mv "$work/result" "$cache/$key"
fi
echo "$cache/$key"
