#!/bin/sh
# Prepares the root file system, $1: units, health checks, and the keys that the machine trusts. Buildroot runs it before the
# images are made (BR2_ROOTFS_POST_BUILD_SCRIPT).
set -eu
root=$1
mkdir -p "$root/etc/qstage/health.d" "$root/etc/systemd/system/multi-user.target.wants"
for unit in qstage qstage-mark-good; do
  ln -sf "/usr/lib/systemd/system/$unit.service" "$root/etc/systemd/system/multi-user.target.wants/$unit.service"
done
install -m 644 "${QSTAGE_SIGNERS:?the file allowed_signers of the machine}" "$root/etc/qstage/allowed_signers"
