"""All benchmarks, one after the other: ``make bench`` (needs the USPS files: ZOOGEN_DATA)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

for name in ("plan.py", "store.py", "model_steps.py"):
    print(f"== {name}", flush=True)
    subprocess.run([sys.executable, str(Path(__file__).with_name(name))], check=True)
