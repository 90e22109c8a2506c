"""On the PYTHONPATH of a build under test (its Ray workers inherit it): installs the fault points once the worker's
module is imported."""

import importlib.machinery
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


class _AfterImport:
    """Finds nothing itself; runs ``install`` when the module has been executed."""

    def find_spec(self, name, path=None, target=None):
        if name != "zoogen.build.worker":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            import fault_points

            shard_bytes = int(os.environ["ZOOGEN_TEST_SHARD_BYTES"])
            fault_points.install(
                Path(os.environ["ZOOGEN_TEST_POINTS"]), float(os.environ["ZOOGEN_TEST_SLOW"]), shard_bytes
            )

        spec.loader.exec_module = exec_module
        return spec


if "ZOOGEN_TEST_POINTS" in os.environ:
    sys.meta_path.insert(0, _AfterImport())
