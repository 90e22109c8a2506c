"""All benchmarks, one after the other: ``make bench``. Those that train need ZOOGEN_DATA, the folder that holds the
files of USPS and ``cifar10-images.tar.gz``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WITHOUT_DATA = ("plan", "store", "tables", "open_zoo", "import_zoo")
WITH_DATA = ("model_steps", "population", "growth", "twins")

data = os.environ.get("ZOOGEN_DATA")
if data is None:
    print(f"ZOOGEN_DATA is not set: {', '.join(WITH_DATA)} are left out", file=sys.stderr)
for name in WITHOUT_DATA + (WITH_DATA if data else ()):
    print(f"== {name}", flush=True)
    options = ["--data", data] if data and name in WITH_DATA else []
    subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py")), *options], check=True)
