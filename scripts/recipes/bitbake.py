"""Reads the recipes of a layer with the parser of BitBake, with empty stand-ins for the classes of OpenEmbedded-Core.

usage: bitbake.py LAYER OUTPUT
Writes the shell code that makes the image type "qimg", with its variables expanded, to OUTPUT.
"""

import pathlib
import re
import sys
import tempfile
from unittest import mock

# The package of PyPI has no client of a hash server, which the parser imports and does not call.
for module in ("hashserv", "hashserv.client"):
    sys.modules[module] = mock.MagicMock()
sys.dont_write_bytecode = True
import bb.data  # noqa: E402
import bb.parse  # noqa: E402

# Signatures of tasks need a build directory.
bb.parse.siggen = mock.MagicMock()
# What a recipe of a release must have (the manual of Yocto, "Recipe Style Guide").
NEEDED = ("SUMMARY", "DESCRIPTION", "HOMEPAGE", "LICENSE")


def inherited(layer):
    """Names of all classes that the layer's files inherit."""
    files = [*layer.rglob("*.bb"), *layer.rglob("*.bbclass")]
    lines = (line for file in files for line in file.read_text().splitlines())
    return {name for line in lines if (found := re.match(r"inherit\s+(.*)", line)) for name in found[1].split()}


def main():
    layer, output = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2])
    own = {file.stem for file in layer.rglob("*.bbclass")}
    read = []
    with tempfile.TemporaryDirectory() as place:
        classes = pathlib.Path(place, "classes")
        classes.mkdir()
        for name in inherited(layer) - own | {"base", "native"}:
            (classes / f"{name}.bbclass").touch()
        # BitBake gives a recipe of BBCLASSEXTEND = "native" this override by its class of that name.
        (classes / "native.bbclass").write_text('OVERRIDES .= ":class-native"\n')
        for recipe in sorted(layer.rglob("*.bb")):
            data = bb.data.init()
            for name, value in (("LAYERDIR", layer), ("BBPATH", place), ("TOPDIR", place), ("MACHINE", "box"),
                                ("OVERRIDES", "class-target"), ("DISTRO_VERSION", "1.0")):
                data.setVar(name, str(value))
            bb.parse.handle(str(layer / "conf/layer.conf"), data, True)
            data.setVar("__bbclasstype", "recipe")
            for variant, found in bb.parse.handle(str(recipe), data).items():
                name = f"{recipe.name} {variant}".strip()
                missing = [key for key in NEEDED if not found.getVar(key)]
                assert not missing, f"{name}: {missing}"
                read.append(name)
                if command := found.getVar("IMAGE_CMD:qimg"):
                    output.write_text(command)
    assert len(read) == 3 and output.exists(), read
    print("bitbake", bb.__version__, "reads", ", ".join(read))


main()
