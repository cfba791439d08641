import pytest
from test_sampled_crash_points import *  # noqa: F403 - its tests and its fixtures

pytestmark = [pytest.mark.kind, pytest.mark.kubevirt, pytest.mark.vcluster]
