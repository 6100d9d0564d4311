#!/bin/sh
# Fetches Debian's cloud kernel, which has NVMe, ext4 and GPT built in, and unpacks it to DIR/kernel: boot/vmlinuz-VERSION and
# lib/modules/VERSION with its modules.dep. What is there already stays. One process at a time does it; the others wait. Needs
# apt and busybox, and no root.
#
# usage: kernel.sh DIR
set -eu

dir=$1
fail() { echo "kernel.sh: $*" >&2; exit 1; }

mkdir -p "$dir"
exec 9> "$dir/kernel.lock"
flock 9
[ ! -d "$dir/kernel/lib/modules" ] || exit 0
# A meta package: it depends on the package of the current version.
package=$(apt-cache depends linux-image-cloud-amd64 2> /dev/null | sed -n 's/^ *Depends: //p' | head -n 1)
[ "$package" ] ||
  fail "apt knows no linux-image-cloud-amd64: 'apt-get update' as root, or put a kernel into $dir/kernel"
rm -rf "$dir/download" "$dir/kernel.new"
mkdir "$dir/download"
(cd "$dir/download" && apt-get -qq -o APT::Sandbox::User=root download "$package" 9>&-) || fail "apt-get download $package failed"
dpkg-deb --extract "$dir"/download/*.deb "$dir/kernel.new"
busybox depmod -b "$dir/kernel.new" "$(ls "$dir/kernel.new/lib/modules")"
rm -rf "$dir/download" "$dir/kernel"
mv "$dir/kernel.new" "$dir/kernel"
