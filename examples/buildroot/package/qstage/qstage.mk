################################################################################
#
# qstage
#
################################################################################

# The repository and the tag of your release. Buildroot vendors the crates when
# it downloads; a local directory would have to contain them (cargo vendor).
QSTAGE_VERSION = v0.2.0
QSTAGE_SITE = https://example.org/qstage.git
QSTAGE_SITE_METHOD = git
QSTAGE_LICENSE = Apache-2.0 or MIT
QSTAGE_LICENSE_FILES = LICENSE-APACHE LICENSE-MIT

define QSTAGE_INSTALL_INIT_SYSTEMD
	for unit in qstage qstage-container qstage-mark-good qstage-trial-failed; do \
		$(INSTALL) -D -m 0644 $(@D)/fixtures/packaging/$$unit.service \
			$(TARGET_DIR)/usr/lib/systemd/system/$$unit.service || exit 1; \
	done
endef

$(eval $(cargo-package))
$(eval $(host-cargo-package))
