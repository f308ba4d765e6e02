"""Where models come from: paths, short names, and a Hub, which is a small one on loopback here."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path

import pytest

from roclab.core.exceptions import RocLabError
from roclab.core.fetch import find_package
from roclab.lm.weights.sources import SHORT_NAMES, Package, locate

from .build import assert_one_line, peer, roclab, write_folder, write_gguf
from .hub import commit_of, running

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def nothing_leaves_this_machine(monkeypatch):
    """A name that is looked up by mistake must not be asked for anywhere."""

    def loopback_only(host, *arguments, **options):
        if host not in ("127.0.0.1", "localhost", b"127.0.0.1", b"localhost"):
            raise socket.gaierror(f"tests use no network: {host!r}")
        return resolve(host, *arguments, **options)

    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", loopback_only)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> dict[str, dict[str, Path]]:
    root = tmp_path_factory.mktemp("hub")
    main = write_folder(root / "main", peer("qwen3"))
    (main / "pytorch_model.bin").write_bytes(b"a second copy of the weights")
    (main / "consolidated.safetensors").write_bytes(b"a third one")
    (main / "onnx").mkdir()
    (main / "onnx" / "config.json").write_text("{}")
    old = write_folder(root / "old", peer("llama"))
    files = root / "files"
    files.mkdir()
    write_gguf(files / "tiny.gguf", peer("llama"))
    return {"org/tiny": {"main": main, "v1": old}, "org/files": {"main": files}}


@pytest.fixture
def hub(repositories):
    with running(repositories) as hub:
        yield hub


def generate(model: str, **environment: str):
    return roclab(
        "lm", "generate", "--model", model, "--prompt", "the", "--max-new-tokens", "3", "--json", **environment
    )


def test_a_repository_is_pulled_once_and_then_works_without_the_hub(repositories, tmp_path):
    with running(repositories) as hub:
        place = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path)}
        result = roclab("pull", "org/tiny", **place)
        assert result.returncode == 0, result.stderr
        folder = Path(result.stdout.strip().removeprefix("org/tiny: "))
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            assert (folder / name).read_bytes() == (repositories["org/tiny"]["main"] / name).read_bytes()
        fetched = {path.partition("@")[0].removeprefix("org/tiny/") for path in hub.served}
        assert not fetched & {"pytorch_model.bin", "consolidated.safetensors", "onnx/config.json"}

        count = len(hub.served)
        result = generate("org/tiny", **place)
        assert result.returncode == 0, result.stderr
        online = json.loads(result.stdout)["text"]
        assert len(hub.served) == count  # nothing is fetched twice

    result = generate("org/tiny", **place)  # the Hub is down
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["text"] == online


def test_a_revision_behind_an_at_sign_is_the_one_that_comes(hub, repositories, tmp_path):
    place = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path)}
    result = roclab("pull", "org/tiny@v1", **place)
    assert result.returncode == 0, result.stderr
    assert commit_of("v1") in result.stdout
    assert hub.served
    assert all(path.endswith(commit_of("v1")) for path in hub.served)
    assert_one_line(roclab("pull", "org/tiny@v9", **place), "org/tiny@v9")


def test_a_single_file_of_a_repository_is_all_that_comes(hub, tmp_path):
    place = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path)}
    result = generate("org/files/tiny.gguf", **place)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["prompt_tokens"] == 1
    assert {path.partition("@")[0] for path in hub.served} == {"org/files/tiny.gguf"}
    result = roclab("pull", "org/files/tiny.gguf@main", **place)
    assert result.returncode == 0, result.stderr
    assert_one_line(roclab("pull", "org/files/other.gguf", **place), "org/files/other.gguf")


def test_an_unknown_repository_is_a_users_mistake(hub, tmp_path):
    result = roclab("pull", "org/unknown", HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path))
    assert_one_line(result, "org/unknown")


def test_without_hub_and_copy_the_message_says_what_to_do(repositories, tmp_path):
    with running(repositories) as hub:
        place = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path)}
    assert_one_line(roclab("pull", "org/tiny", **place), "org/tiny", "cannot be reached", "give its path")
    for name in ("org/tiny@v1", "org/files/tiny.gguf"):
        assert_one_line(roclab("pull", name, HF_HUB_OFFLINE="1", **place), name, "no copy", "give its path")


# ── Names ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["model.gguf", "folder", "folder/model.gguf", "deep/er/model.gguf"])
def test_a_path_that_exists_is_itself(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch() if path.suffix else path.mkdir()
    assert locate(str(path)) == path
    monkeypatch.chdir(tmp_path)
    assert locate(name) == Path(name)  # also where it could be a name on a Hub


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "model.gguf").touch()
    assert locate("~/model.gguf") == tmp_path / "model.gguf"


@pytest.mark.parametrize(
    "name",
    ["", "smollm", "qwen3", "model.gguf", "./org/tiny", "/none/model", "~/none/model", "folder/model.gguf",
     "folder/weights.safetensors", "a b/c", "org/", "/", "org/tiny/extra", "https://example.invalid/org/tiny", "..",
     "../model", "org/tiny@", "x" * 300, "nul\0byte", "~nobody-of-that-name/x"],
    ids=range(20),
)  # fmt: skip
def test_a_wrong_name_lists_the_names_we_know_and_asks_nobody(name, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "roclab")
    if name in ("..", "/"):  # these are folders that exist
        assert locate(name).is_dir()
    else:
        with pytest.raises(RocLabError) as caught:
            locate(name)
        assert all(known in str(caught.value) for known in SHORT_NAMES)
        assert "\n" not in str(caught.value)
    assert not caplog.records  # a look-up would be announced


def test_a_file_that_a_local_folder_lacks_is_not_looked_up_on_a_hub(tmp_path, monkeypatch, caplog):
    (tmp_path / "models" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "roclab")
    with pytest.raises(RocLabError, match="no such file"):
        locate("models/small/model.gguf")
    assert not caplog.records  # a look-up would be announced


def test_the_short_name_of_installed_weights_finds_the_file_in_any_case(smollm_path):
    assert locate("smollm2-135m") == smollm_path == locate("SmolLM2-135M")


def test_a_package_that_is_not_installed_has_no_folder():
    assert find_package("no_such_module_here") is None


def test_every_short_name_is_a_package_or_a_hub_repository():
    for name, source in SHORT_NAMES.items():
        assert name == name.lower()
        assert isinstance(source, Package) or source.count("/") == 1
