import numpy as np
import pytest
from vector_sets import exact


@pytest.fixture(scope="session")
def uniform():
    """2,000 points, 200 queries, the true ten nearest."""
    data = np.random.default_rng(1).random((2200, 16), dtype=np.float32)
    return data[:2000], data[2000:], exact(data[:2000], data[2000:], 10)
