from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import nvml_library
import pytest
from nvml_library import StandIn


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml_library.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def old_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml_library.build(tmp_path_factory.mktemp("old-nvml"), "-DOLD_DRIVER")


@pytest.fixture
def stand_in_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], StandIn]]:
    """Makes a library the one that processes find from now on."""
    made = []

    def use(library: Path) -> StandIn:
        stand_in = StandIn(library, tmp_path)
        made.append(stand_in)
        for name, value in stand_in.environment.items():
            monkeypatch.setenv(name, value)
        return stand_in

    yield use
    for one in made:
        one.close()


@pytest.fixture
def nvml(stand_in_of: Callable[[Path], StandIn], library: Path) -> StandIn:
    """A library that answers as eight H100s do."""
    return stand_in_of(library)
