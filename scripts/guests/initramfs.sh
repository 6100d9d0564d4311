#!/bin/sh
# Makes DIR/initrd for another kernel than that of this machine, with the hooks of this repository, which start the slot that
# qstage-select names. The modules lie where the tools look for them, so it needs a mount namespace of its own, and root:
#
#   unshare --mount --propagation private sh initramfs.sh initramfs-tools|dracut KERNEL SELECT DIR [MODULE...]
#
#   KERNEL   what kernel.sh unpacked
#   SELECT   the program qstage-select
#   MODULE   one that is loaded before the slot is selected; initramfs-tools only
#
# QSTAGE_DISK_GUID is recorded in it as the disk to start from, if it is not empty.
set -eu

maker=$1 kernel=$2 dir=$4
export QSTAGE_SELECT="$3" QSTAGE_DISK_GUID="${QSTAGE_DISK_GUID:-}"
shift 4
packaging=$(cd "$(dirname "$0")/../../fixtures/packaging" && pwd)
version=$(ls "$kernel/lib/modules")

mount -t tmpfs tmpfs /mnt
mkdir /mnt/u /mnt/w
mount -t overlay overlay -o lowerdir=/usr/lib,upperdir=/mnt/u,workdir=/mnt/w /usr/lib
mkdir -p "/usr/lib/modules/$version"
mount --bind "$kernel/lib/modules/$version" "/usr/lib/modules/$version"
mount --bind "$kernel/boot" /boot
# The tool finds modules by the index of kmod, on which it depends; kernel.sh makes that of busybox.
[ "$#" = 0 ] || [ -e "$kernel/lib/modules/$version/modules.dep.bin" ] || depmod -b "$kernel" "$version"
cd "$dir"
case $maker in
  initramfs-tools)
    cp -r /etc/initramfs-tools conf
    cp "$packaging/initramfs-tools/hooks/qstage" conf/hooks/
    cp "$packaging/initramfs-tools/scripts/local-top/qstage" conf/scripts/local-top/
    sed -i 's/^MODULES=.*/MODULES=list/; s/^COMPRESS=.*/COMPRESS=gzip/' conf/initramfs.conf
    printf '%s\n' "$@" > conf/modules
    mkinitramfs -d "$PWD/conf" -o "$PWD/initrd" "$version"
    rm -rf conf
    ;;
  dracut)
    cp -r "$packaging/dracut/90qstage" /usr/lib/dracut/modules.d/
    # NVMe and ext4 are built in: looking for modules is what takes minutes.
    dracut --quiet --force --no-hostonly --gzip --no-kernel --tmpdir "$PWD" \
      --modules 'dash rootfs-block udev-rules base fs-lib qstage' "$PWD/initrd" "$version"
    ;;
  *)
    echo "initramfs.sh: unknown maker '$maker'" >&2
    exit 2
    ;;
esac
