#!/bin/sh
# Packs the root file system into a bundle: $BINARIES_DIR/VERSION.qimg. Buildroot runs it after the images were made
# (BR2_ROOTFS_POST_IMAGE_SCRIPT). QSTAGE_KEY is a private key; without one the bundle is left unsigned, to be signed later.
set -eu
version=${QSTAGE_RELEASE:-$(date -u +%Y.%m.%d)}
"$HOST_DIR/bin/qstage" pack --product "${QSTAGE_PRODUCT:-box}" --version "$version" --platform "$BINARIES_DIR/rootfs.ext4" \
  ${QSTAGE_KEY:+--key "$QSTAGE_KEY"} --force -o "$BINARIES_DIR/$version.qimg"
