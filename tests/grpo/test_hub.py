"""Where a model is looked for: what is said when it is not there, and that nothing is asked for again and again."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import transformers.utils.hub

from grpo.errors import ConfigError
from grpo.policy.hub import require_source

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["./models/foo", "../foo", "/models/foo", "~/foo", "models/foo/checkpoints"])
def test_a_path_without_a_folder_is_called_that(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no such folder") as raised:
        require_source(name)
    assert repr(name) in str(raised.value) and "Repo id" not in str(raised.value)


def test_without_a_network_a_folder_passes_and_the_client_of_a_hub_id_goes_offline(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = transformers.utils.hub.constants
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(client, "ENDPOINT", "http://127.0.0.1:1")  # nobody listens there
    for name, offline in {str(tiny_model): False, "Qwen/Qwen2.5-1.5B": True, "gpt2": True}.items():
        monkeypatch.setattr(client, "HF_HUB_OFFLINE", False)
        require_source(name)
        assert client.HF_HUB_OFFLINE is offline, name


@pytest.mark.normal
@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_hub_id_without_a_network_is_refused_without_asking_again(offline: str, tmp_path: Path) -> None:
    """Nobody listens on the endpoint; the client by itself would try six times, 23 s apart from start to end."""
    code = (
        "from grpo.policy.load import load_tokenizer\n"
        "from grpo.config import ModelConfig\n"
        "load_tokenizer(ModelConfig(model_name_or_path='nobody/nothing'))\n"
    )
    given = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    given |= {"HF_HUB_OFFLINE": offline, "HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=given, capture_output=True, text=True)
    assert "ConfigError: model_name_or_path: got 'nobody/nothing'" in ended.stderr
    assert "as a Hub id it was not downloaded before" in ended.stderr
    assert "Retrying" not in ended.stderr
