SUMMARY = "An appliance that qstage upgrades"
DESCRIPTION = "A small image with a read-only root file system, and a bundle of it."
HOMEPAGE = "https://example.org/qstage"
SECTION = "base"
LICENSE = "MIT"

inherit core-image image_types_qimg

IMAGE_FEATURES += "read-only-rootfs"
IMAGE_INSTALL = "packagegroup-core-boot kexec-tools qstage"
IMAGE_FSTYPES = "ext4 qimg"

QSTAGE_PRODUCT = "box"
