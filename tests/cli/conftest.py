from __future__ import annotations

from itertools import islice

import pytest

from vmtenancy import resources
from vmtenancy.reconcile.view import View
from vmtenancy.reconcile.world import World
from vmtenancy.testing.stage_memory import MemoryStage
from vmtenancy.testing.story import tell


@pytest.fixture(scope="session")
def story() -> World:
    """The quickstart in memory, up to the scene in which a machine waits for quota."""
    stage = MemoryStage(resources.templates())
    manifests = {
        path.name: list(resources.objects(path)) for path in resources.folder("quickstart").glob("*.yaml")
    }
    *_, scene = islice(tell(stage, manifests), 6)
    return scene.world


@pytest.fixture
def view(story: World) -> View:
    return View(story, 1_800_000_000.0)
