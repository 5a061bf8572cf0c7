"""What the tests share: real rows, the demo models, few threads."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded: tests run beside each other
import torch
from first import swept as swept
from hypothesis import settings
from lasting import Lasting

settings.register_profile("untimed", deadline=None)  # a machine that is busy for a moment fails no test
settings.load_profile("untimed")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Whoever starts the tests in the background makes them, and all that they start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups after it
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a module makes once no second worker makes anew; what is slow begins first, lest one worker end with it."""
    for item in items:
        made = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
        if any(each[-1].scope == "module" for each in made) and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: not item.get_closest_marker("slow"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real benchmark rows; whoever needs it is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no benchmark rows at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def sandboxes() -> None:
    """Whoever has programs run is skipped where no sandbox can be made: in most containers, say."""
    from orchestrator.errors import UserError
    from orchestrator.scoring import sandbox

    try:
        sandbox.check()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def demo_models() -> dict[str, Path]:
    """The demo pair, as the package ships it."""
    from orchestrator.models.loading import source_of

    return {name: Path(source_of(name, name)) for name in ("demo-teacher", "demo-student")}


@pytest.fixture(scope="module")
def room() -> Iterator[None]:
    """Four CPUs for any Ray that a module starts, whatever the machine has: its processes are small, and take turns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 4}')  # Ray's own variable
        yield


@pytest.fixture(scope="module")
def ray_here(room: None) -> Iterator[Lasting]:
    """A Ray session for a module, whose processes find what tests have ranks do."""
    import ray

    from orchestrator.cluster import ranks
    from orchestrator.cluster.session import connected

    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(address="local", include_dashboard=False, log_to_driver=False, runtime_env=here)
    with connected(), pytest.MonkeyPatch.context() as patch:
        held = Lasting()
        patch.setattr(ranks, "_group", held.group)
        yield held
        held.end()
    ray.shutdown()


@pytest.fixture
def lasting(ray_here: Lasting) -> Iterator[None]:
    """The ranks of one test are those of the next."""
    ray_here.on = True
    yield
    ray_here.on = False


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)
