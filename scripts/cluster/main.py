"""Runs the scenes of the demonstration; see scripts/demo-cluster."""

import argparse
import pathlib
import sys
import traceback

import scenes
from machines import log, now
from world import World

# Time limit of the quick form in seconds, for all scenes together; it is part of the tests.
QUICK_LIMIT = 120


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    for name in ["--binaries", "--client", "--work"]:
        parser.add_argument(name, type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    world = World(arguments, pathlib.Path(__file__).resolve().parents[2])
    try:
        world.join()
        for scene in scenes.QUICK if arguments.quick else scenes.FULL:
            log("scene", scene.__doc__.strip())
            scene(world)
    except BaseException:
        traceback.print_exc()
        for node in world.nodes:
            text = (node.dir / "log").read_text() if (node.dir / "log").exists() else ""
            lines = [line for line in text.splitlines() if '"audit"' not in line]
            print(f"---- {node.name}", *lines[-40:], sep="\n", file=sys.stderr)
        return 1
    finally:
        world.close()
    print("\nmeasured")
    for what, figure in scenes.MEASURED:
        print(f"  {what:<72} {figure}")
    print(f"  {'all of it':<72} {now():.0f} s")
    if arguments.quick and now() > QUICK_LIMIT:
        print(f"demo-cluster: the quick form took {now():.0f} s, more than {QUICK_LIMIT} s", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
