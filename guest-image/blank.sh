#!/bin/sh
# Makes the file system that the disk of a kept machine begins as: empty, small, sparse, growing as it is used.
#
# Usage: blank.sh FILE
#
# The same e2fsprogs give the same bytes: names, seeds and times that they would draw or look up are fixed. All machines begin with
# one UUID, and no machine sees another's disk.
set -eu

file=$1
here=$(cd "$(dirname "$0")" && pwd)
rm -f "$file"
truncate --size 32M "$file"

# e2fsprogs are in sbin, which is not on everybody's path.
PATH=$PATH:/usr/sbin:/sbin
id=9b3f1c52-6a0e-4d17-8c5b-2f7e40a1d6b8
# It grows to 1 TiB with its group descriptors where they are, and has an inode for each 16 KiB then. Nothing is cleared that reads as
# zeros anyway. The journal is as small as does not slow down what is written at once.
SOURCE_DATE_EPOCH=1 E2FSPROGS_FAKE_TIME=1 MKE2FS_CONFIG=$here/mke2fs.conf mke2fs -q -F -t ext4 \
    -N 8192 -m 0 -U "$id" -J size=8 \
    -E "hash_seed=$id,lazy_itable_init=1,lazy_journal_init=1,nodiscard,resize=268435456,root_owner=0:0" \
    "$file"
