"""Phi-3's architecture inside Bridge: our conversion against transformers, there and back, and what it refuses."""

# pyright: reportMissingImports=false
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from megatron.bridge import AutoBridge
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Phi3ForCausalLM

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.bridge.models import adapt, provider_from
from tests.bridge.families import phi_config
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.timeout(400)

TOKENS = torch.arange(3, 27).view(1, -1)


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("phi")
    Phi3ForCausalLM(phi_config()).save_pretrained(folder / "phi")
    return folder / "phi"


def there_and_back(phi: Path, tp: int, factor: float | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of the imported model on this rank's group, and the weights as they are exported."""
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp)
    model_parallel_cuda_manual_seed(1)
    provider = provider_from(str(phi))
    provider.tensor_model_parallel_size, provider.pipeline_dtype = tp, torch.float32
    if factor is not None:
        provider.rotary_factor = factor
    adapt(provider, torch.device("cpu"))
    provider.finalize()
    (model,) = provider.provide_distributed_model(wrap_with_ddp=False, mixed_precision_wrapper=None)
    model.eval()
    with torch.no_grad():
        logits = gather_from_tensor_model_parallel_region(model(TOKENS, torch.arange(24)[None], None))
    bridge = AutoBridge.from_hf_pretrained(str(phi))
    return logits, {name: weight.clone() for name, weight in bridge.export_hf_weights([model], show_progress=False)}


@pytest.mark.parametrize("tp", [1, 2])
def test_an_imported_model_has_its_logits_and_goes_back_as_it_was(phi: Path, tp: int) -> None:
    results = run_ranks(tp, there_and_back, phi, tp, timeout=150)
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(phi)(TOKENS).logits
    stored = load_file(phi / "model.safetensors")
    for logits, weights in results:
        torch.testing.assert_close(logits[..., :304], wanted, rtol=1e-5, atol=1e-5)
        for name, weight in stored.items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-6, atol=1e-6)


def test_without_the_factor_of_sines_and_cosines_the_logits_are_others(phi: Path) -> None:
    ((logits, _),) = run_ranks(1, there_and_back, phi, 1, 1.0, timeout=150)
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(phi)(TOKENS).logits
    assert (logits[..., :304] - wanted).abs().max() > 1e-3


def test_positions_that_megatron_does_not_know_are_refused(phi: Path, tmp_path: Path) -> None:
    provider = provider_from(str(phi), load_weights=False)
    assert provider.longest_sequence == provider.seq_length == 64
    with pytest.raises(ConfigError, match=r"beyond 64 tokens, .* got sequences of 65"):
        replace(provider, seq_length=65).provide()
    stretched = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2], "long_factor": [2.0] * 3}
    Phi3ForCausalLM(phi_config(rope_scaling=stretched)).save_pretrained(tmp_path / "stretched")
    with pytest.raises(ConfigError, match="stretches the positions of short sequences too"):
        provider_from(str(tmp_path / "stretched"), load_weights=False)
    Phi3ForCausalLM(phi_config(rope_scaling=None, sliding_window=16)).save_pretrained(tmp_path / "window")
    windowed = provider_from(str(tmp_path / "window"), load_weights=False)
    assert (windowed.longest_sequence, windowed.rotary_factor) == (16, 1.0)
