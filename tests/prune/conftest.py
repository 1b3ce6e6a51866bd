import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny matrices: a second thread only waits for the first (eight times slower on a busy machine)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
