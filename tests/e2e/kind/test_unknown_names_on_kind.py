import pytest
from test_unknown_names import *  # noqa: F403 - its tests and its fixtures

pytestmark = [pytest.mark.kind, pytest.mark.kubevirt, pytest.mark.vcluster]
