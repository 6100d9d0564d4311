"""Runs the scenes of the demonstration; see scripts/demo-cluster."""

import argparse
import dataclasses
import pathlib
import sys
import traceback

import scenes
from guests import Guests
from machines import Waiting, log, now
from world import World


@dataclasses.dataclass
class Form:
    """A cluster and what happens in it. Times in seconds."""

    world: type
    scenes: list
    nodes: int
    members: int
    # How long a node is off, and how long another one waits for it.
    boot_time: float
    reboot_timeout: int
    # How long nothing may happen before it counts as stopped.
    pause: int
    # Of all limits of waits.
    factor: int = 1
    # Limit of all scenes together; the quick form is part of the tests.
    limit: float = float("inf")


FORMS = {
    "full": Form(World, scenes.FULL, 5, 3, boot_time=1.5, reboot_timeout=25, pause=3),
    "quick": Form(World, scenes.QUICK, 3, 1, boot_time=0.7, reboot_timeout=20, pause=3, limit=120),
    "vm": Form(Guests, scenes.GUESTS, 3, 1, boot_time=0, reboot_timeout=300, pause=10, factor=4),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--form", type=FORMS.get, required=True)
    for name in ["--binaries", "--client", "--work"]:
        parser.add_argument(name, type=pathlib.Path, required=True)
    parser.add_argument("--kernel", type=pathlib.Path)
    arguments = parser.parse_args()
    form = arguments.form
    Waiting.factor = form.factor
    world = form.world(arguments, pathlib.Path(__file__).resolve().parents[2])
    Waiting.nodes = world.nodes
    try:
        world.join()
        for scene in form.scenes:
            log("scene", scene.__doc__.strip())
            scene(world)
    except BaseException:
        traceback.print_exc()
        for node in world.nodes:
            print(f"---- {node.name}", *node.last_words(), sep="\n", file=sys.stderr)
        return 1
    finally:
        world.close()
    print("\nmeasured")
    for what, figure in scenes.MEASURED:
        print(f"  {what:<72} {figure}")
    print(f"  {'all of it':<72} {now():.0f} s")
    if now() > form.limit:
        print(f"demo-cluster: this form took {now():.0f} s, more than {form.limit} s", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
