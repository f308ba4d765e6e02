"""What the tests share: real weights from their package, real data beside the repository where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported

ROOT = Path(__file__).parent.parent
SHARED_DATA = Path(os.environ.get("ROCLAB_SHARED_DATA") or ROOT.parent / "shared" / "data")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config):
    """Features, inspections and compiled kernels of the tests are kept apart from the user's. The kernels stay from one
    session to the next: their names hold a hash of their sources, and compiling takes ten seconds."""
    before = os.environ.get("ROCLAB_CACHE")
    cache = tmp_path_factory.mktemp("cache")
    (cache / "kernels").symlink_to(pytestconfig.cache.mkdir("kernels"), target_is_directory=True)
    os.environ["ROCLAB_CACHE"] = str(cache)
    yield
    os.environ.pop("ROCLAB_CACHE")
    if before is not None:
        os.environ["ROCLAB_CACHE"] = before


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images, texts and a tokenizer that lie beside the repository, on machines that have them."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no shared data on this machine (ROCLAB_SHARED_DATA)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def qwen_folder(shared_data) -> Path:
    return shared_data / "qwen3-tokenizer"


@pytest.fixture(scope="session")
def qwen(qwen_folder):
    """Qwen3's real tokenizer."""
    from roclab.lm.text.tokenizer import Tokenizer

    return Tokenizer.from_directory(qwen_folder)


@pytest.fixture(scope="session")
def smollm_path() -> Path:
    """SmolLM2-135M-Instruct's GGUF file; `make test` installs the package that ships it."""
    from roclab.core.fetch import find_package
    from roclab.lm.weights.sources import SHORT_NAMES, Package

    package = SHORT_NAMES["smollm2-135m"]
    assert isinstance(package, Package)
    folder = find_package(package.module)
    if folder is None:
        pytest.skip("the weights are not installed: roclab pull smollm2-135m")
    return folder / package.file


@pytest.fixture(scope="session")
def smollm(smollm_path):
    """(runner, tokenizer) with the real weights in the readable model, `runner.model`."""
    from roclab.lm.engine.torch_runner import TorchRunner
    from roclab.lm.weights.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(smollm_path)
    return TorchRunner(checkpoint.load_model()), checkpoint.load_tokenizer()


@pytest.fixture(scope="session")
def smollm_peer(smollm):
    """The same dequantized weights in transformers' own Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = smollm[0].model
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings",
             "tie_word_embeddings")  # fmt: skip
    peer = LlamaForCausalLM(LlamaConfig(**{name: getattr(model.config, name) for name in names})).eval()
    peer.load_state_dict(model.state_dict())
    return peer
