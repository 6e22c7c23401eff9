from pathlib import Path

import numpy as np
import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


@pytest.fixture(scope="session")
def fixtures():
    return FIXTURES


@pytest.fixture(scope="session")
def golden():
    """Opens a file of golden values of X-VLA's reader."""
    return lambda name: np.load(FIXTURES / "golden_data" / name)
