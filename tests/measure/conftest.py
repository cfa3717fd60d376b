"""What the tests of the measures share."""

import pytest

from ldm_mini.measure.recogniser import Recogniser


@pytest.fixture(scope="session")
def recogniser() -> Recogniser:
    """The shipped one."""
    return Recogniser.load()
