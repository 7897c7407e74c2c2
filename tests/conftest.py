"""For all tests."""

from collections.abc import Iterator

import pytest

from tuneline.core.progress import logger


@pytest.fixture(autouse=True)
def _no_handler_of_another_test() -> Iterator[None]:
    """A command that ran in this process logs to the stderr of its own test, closed by now."""
    yield
    logger.handlers = []
    logger.propagate = True
