# The image type "qimg": packs the root file system of an image into a bundle.
#
# In local.conf or in the recipe of an image:
#   IMAGE_CLASSES += "image_types_qimg"       (local.conf; in a recipe: inherit image_types_qimg)
#   IMAGE_FSTYPES += "qimg"
#   QSTAGE_VERSION = "1.0"
#   QSTAGE_KEY = "/secret/key"                without it the bundle is unsigned, for 'qstage sign'

# Machines of other products refuse the bundle.
QSTAGE_PRODUCT ?= "${MACHINE}"
QSTAGE_VERSION ?= "${DISTRO_VERSION}"
QSTAGE_KEY ?= ""
# The file system that is packed.
QSTAGE_FSTYPE ?= "ext4"
# Further options of 'qstage pack', such as --software, --firmware or --epoch.
QSTAGE_PACK_OPTIONS ?= ""

IMAGE_TYPES += "qimg"
# nooelint: oelint.vars.specific,oelint.vars.mispell - the image type is its own override
IMAGE_TYPEDEP:qimg = "${QSTAGE_FSTYPE}"
do_image_qimg[depends] += "qstage-native:do_populate_sysroot"
# The place of the key does not change the result.
do_image_qimg[vardepsexclude] += "QSTAGE_KEY"

IMAGE_CMD:qimg () {
    key=""
    if [ -n "${QSTAGE_KEY}" ]; then
        key="--key ${QSTAGE_KEY}"
    fi
    qstage pack --product "${QSTAGE_PRODUCT}" --version "${QSTAGE_VERSION}" \
        --platform "${IMGDEPLOYDIR}/${IMAGE_NAME}.${QSTAGE_FSTYPE}" \
        $key ${QSTAGE_PACK_OPTIONS} --force -o "${IMGDEPLOYDIR}/${IMAGE_NAME}.qimg"
}
