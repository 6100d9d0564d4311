# Expands the package of Buildroot with stand-ins for its infrastructure, and does what the package itself defines.
# usage: make -f buildroot.mk TREE=... SOURCE=... TARGET_DIR=...
BR2_EXTERNAL_QSTAGE_PATH := $(TREE)
INSTALL := install
packages :=
cargo-package = packages += target
host-cargo-package = packages += host

include $(TREE)/external.mk

# The recipe of a package runs with $(@D) as its source; this target lies there.
$(SOURCE)/.stamp:
	test "$(sort $(packages))" = 'host target'
	test "$(QSTAGE_SITE_METHOD)" = git && test -n "$(QSTAGE_SITE)"
	test "$(QSTAGE_VERSION)" = "v$$(sed -n 's/^version = "\(.*\)"$$/\1/p' $(SOURCE)/Cargo.toml | head -1)"
	for file in $(QSTAGE_LICENSE_FILES); do test -s "$(SOURCE)/$$file" || exit 1; done
	$(QSTAGE_INSTALL_INIT_SYSTEMD)
.PHONY: $(SOURCE)/.stamp
