"""Reads the Kconfig files of an external tree of Buildroot with kconfiglib, and its defconfig, with stand-ins for the symbols
of Buildroot.

usage: kconfig.py TREE
"""

import os
import pathlib
import re
import sys
import tempfile

import kconfiglib

tree = pathlib.Path(sys.argv[1]).resolve()
os.environ["BR2_EXTERNAL_QSTAGE_PATH"] = str(tree)
# Buildroot gives its symbols no prefix.
os.environ["CONFIG_"] = ""
defconfig = tree / "configs/box_defconfig"
RUST = ("BR2_PACKAGE_HOST_RUSTC_TARGET_ARCH_SUPPORTS", "BR2_PACKAGE_HOST_RUSTC_ARCH_SUPPORTS")


def values(rust):
    """The values of the tree's own symbols under its defconfig, on a machine with or without Rust."""
    own = {found for file in tree.rglob("Config.in*") for found in re.findall(r"^config (\w+)", file.read_text(), re.M)}
    lines = defconfig.read_text().splitlines()
    text = ['mainmenu "stand-in"']
    for line in lines:
        if (found := re.match(r"(?:# )?(BR2_\w+)(=.)?", line)) and found[1] not in own:
            kind = "string" if found[2] == '="' else "bool"
            text.append(f'config {found[1]}\n\t{kind} "{found[1]}"')
    text += [f"config {name}\n\tbool\n\tdefault {'y' if rust else 'n'}" for name in RUST]
    text.append("config BR2_PACKAGE_HOST_RUSTC\n\tbool")
    text.append('source "$BR2_EXTERNAL_QSTAGE_PATH/Config.in"\n')
    with tempfile.TemporaryDirectory() as place:
        top = pathlib.Path(place, "Config.in")
        top.write_text("\n".join(text))
        known = kconfiglib.Kconfig(str(top), warn_to_stderr=False)
        known.load_config(str(defconfig))
        complaints = known.warnings if rust else []
        assert not complaints, complaints
        return {name: known.syms[name].str_value for name in sorted(own)}


with_rust, without = values(True), values(False)
assert with_rust and set(with_rust.values()) == {"y"}, with_rust
assert set(without.values()) == {"n"}, without
print("kconfiglib reads", ", ".join(with_rust))
