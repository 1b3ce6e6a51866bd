from tests.pipelines.conftest import model
from tests.prune.conftest import one_thread

__all__ = ["model", "one_thread"]
