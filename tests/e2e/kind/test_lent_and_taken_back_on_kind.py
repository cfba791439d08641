import pytest
from test_lent_and_taken_back import *  # noqa: F403 - its tests and its fixtures

pytestmark = [pytest.mark.kind, pytest.mark.kubevirt, pytest.mark.vcluster]
