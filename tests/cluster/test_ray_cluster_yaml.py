"""ray_cluster.yaml as `ray up` reads it: Ray's own defaults, schema and checks, without a cloud."""

import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from orchestrator.recipe import Sweep
from orchestrator.sweep.hardware import Hardware
from orchestrator.sweep.plan import forecast
from orchestrator.sweep.presets import complete

ROOT = Path(__file__).parents[2]
GPUS = {"p4d.24xlarge": (8, 40e9), "p4de.24xlarge": (8, 80e9), "p5.48xlarge": (8, 80e9)}  # as AWS lists them


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


def test_ray_accepts_it(config):
    validate_config(prepare_config(config))


@pytest.mark.parametrize("key", ["max_worker", "docker_image", "file_mount"])
def test_ray_refuses_a_misspelt_key(config, key):
    with pytest.raises(jsonschema.ValidationError, match=key):
        validate_config(prepare_config(config | {key: 1}))


def test_nodes_run_the_versions_that_the_project_pins(config):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        re.split(r"==|(?=[<>])", line.replace("[tune,train,default]", ""), maxsplit=1)
        for line in project["dependencies"]
    )
    assert config["docker"]["image"].startswith(f"rayproject/ray:{pins['ray']}-py311")
    assert f"pip install torch=={pins['torch']}" in config["setup_commands"]


def test_the_token_is_asked_for_and_brought_to_every_node(config):
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_results_and_models_lie_on_what_all_nodes_mount(config):
    options = " ".join(config["docker"]["run_options"])
    (mounted,) = re.findall(r"-v (\S+):\1", options)
    assert mounted in config["initialization_commands"][2]
    for name in ("PKT_STORE", "HF_HOME"):
        assert f"--env {name}={mounted}/" in options


def test_its_own_command_fits_the_gpus_of_one_node_by_the_plan(config):
    (command,) = re.findall(r"pkt sweep --teacher (\S+) --address", (ROOT / "ray_cluster.yaml").read_text())
    count, memory = GPUS[config["available_node_types"]["gpu"]["node_config"]["InstanceType"]]
    told = forecast(Sweep.model_validate(complete({"recipe": {"teacher": command}})), Hardware(count, memory))
    assert all(cost.fits for cost in told.steps.values())
