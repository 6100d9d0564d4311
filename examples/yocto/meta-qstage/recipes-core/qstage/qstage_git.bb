SUMMARY = "Stages signed bundles into the inactive slot of a GPT disk and switches to them"
DESCRIPTION = "qstage, the selector of the initramfs, and the systemd units. \
               The native package packs and signs bundles."
HOMEPAGE = "https://example.org/qstage"
BUGTRACKER = "https://example.org/qstage/issues"
SECTION = "base"
LICENSE = "Apache-2.0 | MIT"
LIC_FILES_CHKSUM = "file://LICENSE-MIT;md5=10f536e78814f173f5b3ded665915341 \
                    file://LICENSE-APACHE;md5=3b83ef96387f14655fc854ddc3c6bd57"

PV = "0.2.0+git"
# The repository and the revision of your release.
SRC_URI = "git://example.org/qstage.git;protocol=https;branch=main"
SRCREV = "0000000000000000000000000000000000000000"
# The crates with their checksums: 'bitbake -c update_crates qstage' makes this file from Cargo.lock.
include ${BPN}-crates.inc

inherit cargo cargo-update-recipe-crates systemd

do_install:append() {
    install -d ${D}${sysconfdir}/qstage/health.d
    install -m 0644 ${S}/fixtures/packaging/README.health.d ${D}${sysconfdir}/qstage/health.d/README
}

do_install:append:class-target() {
    install -d ${D}${systemd_system_unitdir}
    install -m 0644 ${S}/fixtures/packaging/*.service ${D}${systemd_system_unitdir}
}

PACKAGES =+ "${PN}-select"
SYSTEMD_PACKAGES = "${PN}"
SYSTEMD_SERVICE:${PN} = "qstage.service qstage-container.service qstage-mark-good.service qstage-trial-failed.service"
SYSTEMD_AUTO_ENABLE:${PN} = "disable"

FILES:${PN}-select += "${bindir}/qstage-select"

# What verbs start: see the package of Debian.
RRECOMMENDS:${PN} = "systemd-container util-linux-mount kexec-tools openssh-keygen"

BBCLASSEXTEND = "native"
