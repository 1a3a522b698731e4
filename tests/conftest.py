"""What the tests share."""

import pytest

from datasets import load_dataset


def pytest_configure(config):
    config.addinivalue_line("markers", "network: needs the package registry")


@pytest.fixture(scope="session")
def mnist():
    """MNIST, downloaded once and kept in the cache that the scripts use, too."""
    return load_dataset()
