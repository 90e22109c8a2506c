import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # store_samples, also for the processes that tests start

from store_samples import Sample


@pytest.fixture
def sample(tmp_path):
    """A zoo with one planned cohort of four models, three segments, and its checkpoints; nothing is sealed yet."""
    return Sample.make(tmp_path / "zoo")
