import pytest
import tiny


@pytest.fixture
def data():
    return tiny.data()


@pytest.fixture
def batch(data):
    return next(iter(data.train_dataloader()))
