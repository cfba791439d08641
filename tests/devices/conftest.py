from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nvml_library
import pytest
from nvml_library import StandIn, using

from vmtenancy.devices.nvml_process import NvmlProcess


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml_library.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def nvml(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """A library that processes find from now on, and that answers as eight H100s do (`board`)."""
    with using(library, tmp_path_factory.mktemp("answers")) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def process(nvml: StandIn) -> Iterator[NvmlProcess]:
    process = NvmlProcess(30.0)
    yield process
    process.close()


@pytest.fixture(autouse=True)
def answers_are_as_at_first(request: pytest.FixtureRequest) -> None:
    if "nvml" in request.fixturenames:
        request.getfixturevalue("nvml").answer(nvml_library.board())
