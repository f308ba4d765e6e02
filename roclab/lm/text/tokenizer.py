"""Text to token ids and back, on top of the `tokenizers` library.

The one rule that everything below serves: **text typed by somebody never becomes a control token.** Control tokens
(`<|im_start|>`, `<think>`, …) are renamed, inside the library's tokenizer, to names that no text can hold. Only a chat
template may write the public names; whatever a message contains is encoded as ordinary tokens.

    message texts → masked → template renders → public names become inner names → unmasked → token ids

Masked: every character that begins a control token's name is replaced by a noncharacter while the template runs. (A
template that itself put a name together out of fixed text and a message's, such as `</{{ word }}>`, would defeat that.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as LibraryTokenizer

from roclab.core.exceptions import CheckpointError, RocLabError
from roclab.core.files import read_json
from roclab.lm.text.chat_template import Mask, render
from roclab.lm.text.sentencepiece import read_sentencepiece

# Noncharacters around the inner name of a control token. In text that comes from outside they are replaced, as are lone
# surrogates, which were bytes that are not UTF-8.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
NOT_TEXT = re.compile("[\ufdd0\ufdd1\ud800-\udfff]")
LONG = 10_000  # characters

# What a Hugging Face folder holds of a tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
# What ends a turn of a chat, in the field's vocabularies. Files often name another token, or only the text's end.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<|eom_id|>")
# The flags of an added token in tokenizer.json.
ADDED_TOKEN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself where it is printable, else a character from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


class Tokenizer:
    """Encodes ordinary text, renders chats, decodes ids.

    Attributes: `control` (name → id of every control token), `bos_token_id`, `eos_token_ids`, `chat_template` (Jinja
    source or None), `adds_bos` (whether the model wants a BOS before plain text), `folder` (whose files it was read
    from, or None).
    """

    folder: Path | None = None

    def __init__(
        self,
        definition: Mapping[str, Any],
        *,
        bos_token: str | None = None,
        eos_tokens: Sequence[str] = (),
        adds_bos: bool = False,
        chat_template: str | None = None,
        twins: Mapping[int, str] | None = None,
        origin: str = "tokenizer",
    ):
        """`definition` is the content of a tokenizer.json; `twins` are ids that no text is encoded as, because another
        id has the same name; `origin` names the definition in messages."""
        self.origin = origin
        self.chat_template = chat_template
        try:
            self._build(definition, [name for name in (bos_token, *eos_tokens) if name is not None], twins or {})
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exception; a damaged definition may raise anything
            what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
            raise CheckpointError(f"{origin}: the tokenizer cannot be built: {what}") from None
        self.bos_token = bos_token
        self.eos_token = eos_tokens[0] if eos_tokens else None
        self.bos_token_id = self.token_to_id(bos_token) if bos_token else None
        ends = [*eos_tokens, *(name for name in END_OF_TURN if name in self.control and name in (chat_template or ""))]
        self.eos_token_ids = [i for name in dict.fromkeys(ends) if (i := self.token_to_id(name)) is not None]
        self.adds_bos = adds_bos and self.bos_token_id is not None

    def _build(self, definition: Mapping[str, Any], named: Sequence[str], twins: Mapping[int, str]) -> None:
        """`named`: the BOS and EOS tokens. They are control tokens even if the definition does not list them as such,
        else their names could be typed."""
        model = definition["model"]
        if (kind := model.get("type", "BPE" if "merges" in model else None)) != "BPE":
            raise CheckpointError(f"{self.origin}: tokenizers of kind {kind!r} are not supported (supported: BPE)")
        added = {token["content"]: token for token in definition.get("added_tokens") or []}
        for name in named:
            if name not in added and name not in model["vocab"]:
                raise CheckpointError(
                    f"{self.origin}: {name!r} is named as a special token but is not in the vocabulary"
                )
            added.setdefault(name, {**ADDED_TOKEN, "content": name, "id": model["vocab"].get(name), "special": True})
        definition = {**definition, "added_tokens": list(added.values())}
        # Runs of spaces and the like are added tokens too in some vocabularies, and are ordinary text.
        self.control = {name: token["id"] for name, token in added.items() if name.strip()}
        self._definition = self._with_inner_names(definition)
        vocabulary = self._definition["model"]["vocab"]
        self._names = dict(zip(vocabulary.values(), vocabulary, strict=True))
        self._names |= {token["id"]: token["content"] for token in self._definition["added_tokens"]}
        self._names |= twins
        self._largest_id = max(self._names)
        self._control_names = {i: name for name, i in self.control.items()}
        self._lead_space = _has_part(definition.get("decoder"), "Strip")  # SentencePiece style: "▁Hello" is "Hello"
        self._byte_level = _has_part(definition.get("decoder"), "ByteLevel")
        self._library = _library_tokenizer(self._definition)

    def _with_inner_names(self, definition: Mapping[str, Any]) -> dict[str, Any]:
        """The definition with every control token renamed and put into the vocabulary under its own id, and without
        the post-processor (BOS is ours to add) and any truncation or padding."""
        model = dict(definition["model"])
        inner = {name: f"{_OPEN}{i}{_CLOSE}" for name, i in self.control.items()}
        model["vocab"] = dict(model["vocab"])
        for name, i in self.control.items():
            model["vocab"].pop(name, None)
            model["vocab"][inner[name]] = i
        # A merge into a control token would need its public name in the vocabulary, and could be typed; one out of it
        # would need the name too.
        begins = {name[:1] for name in inner}  # spares putting nearly all pairs together, a hundred thousand of them
        model["merges"] = [
            (a, b) for a, b in _pairs(model["merges"])
            if not (b in inner or (a[:1] in begins and (a in inner or a + b in inner)))
        ]  # fmt: skip
        added = [
            {**token, "content": inner.get(token["content"], token["content"]), "normalized": False}
            for token in definition["added_tokens"]
        ]
        return {
            **definition, "model": model, "added_tokens": added,
            "post_processor": None, "truncation": None, "padding": None,
        }  # fmt: skip

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """From tokenizer.json (or SentencePiece's tokenizer.model), tokenizer_config.json and chat_template.jinja, as
        Hugging Face directories hold them. Raises CheckpointError if the first is missing or damaged."""
        path = Path(path)
        config = read_json_object(path / "tokenizer_config.json") if (path / "tokenizer_config.json").exists() else {}
        file = path / "tokenizer.json"
        if file.exists() or not (path / "tokenizer.model").exists():
            definition = read_json_object(file)
        else:
            file = path / "tokenizer.model"
            definition = _with_added_tokens(read_sentencepiece(file), path, config)
            config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True} | config
        template: Any = config.get("chat_template")
        if (path / "chat_template.jinja").exists():
            try:
                template = (path / "chat_template.jinja").read_text(encoding="utf-8-sig")
            except (ValueError, OSError) as error:
                raise CheckpointError(f"{path / 'chat_template.jinja'}: cannot be read: {error}") from None
        try:
            if isinstance(template, list):  # several by name: tool use has its own in some models
                template = {entry["name"]: entry["template"] for entry in template}.get("default")
            bos, eos, template = map(_token_text, (config.get("bos_token"), config.get("eos_token"), template))
        except (KeyError, TypeError) as error:
            what = "bos_token, eos_token and chat_template must be texts"
            raise CheckpointError(f"{path / 'tokenizer_config.json'}: {what} ({error})") from None
        adds_bos = config.get("add_bos_token")
        if adds_bos is None:  # the post-processor knows
            adds_bos = bos is not None and bos in json.dumps(definition.get("post_processor"), ensure_ascii=False)
        tokenizer = cls(
            definition, bos_token=bos, eos_tokens=[eos] if eos else [], adds_bos=bool(adds_bos),
            chat_template=template, origin=str(file),
        )  # fmt: skip
        tokenizer.folder = path
        return tokenizer

    # ── text → ids ──────────────────────────────────────────────────────────────────────────────────────────────

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Ordinary text → ids; control tokens spelled in it stay text. `bos`: None does what the model wants."""
        ids = self._ids(NOT_TEXT.sub("\ufffd", text))
        if self.adds_bos if bos is None else bos:
            if self.bos_token_id is None:
                raise RocLabError(f"{self.origin}: this vocabulary has no BOS token")
            ids = [self.bos_token_id, *ids]
        return ids

    def _ids(self, text: str) -> list[int]:
        if len(text) < LONG:
            return self._library.encode(text, add_special_tokens=False).ids
        # as a batch: the library lets go of Python's lock only then, and a server's other threads go on
        return self._library.encode_batch([text], add_special_tokens=False)[0].ids

    def normalized(self, text: str) -> str:
        """The text that the ids of `encode` stand for, where the tokenizer changes it first: Qwen's composes letters
        and their marks (NFC). Characters without a token are still in it."""
        text = NOT_TEXT.sub("\ufffd", text)
        if self._library.normalizer is None:
            return text
        text = self._library.normalizer.normalize_str(text)
        if not self._byte_level:
            text = text.replace("▁", " ")
        return text[1:] if self._lead_space and text.startswith(" ") else text

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        now: datetime | None = None,
        **variables: Any,
    ) -> list[int]:
        """Messages ({"role", "content", …}) → ids through the chat template. `enable_thinking` None leaves the choice
        to the template, `now` is the time that it may tell the model; further `variables` (tools, …) reach it as they
        are. Raises RocLabError without a template, or with the template's own complaint."""
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        hide = self._mask.hide
        text = self._render(
            [{key: item if key == "role" else hide(item) for key, item in m.items()} for m in messages],
            {"add_generation_prompt": add_generation_prompt, **{name: hide(v) for name, v in variables.items()}},
            now,
        )
        text = self._public_names.sub(lambda m: f"{_OPEN}{self.control[m.group()]}{_CLOSE}", text)
        return self._ids(self._mask.show(text))

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The template's text as other programs would see it, for reading only: control tokens by their names."""
        return self._render(messages, {"add_generation_prompt": True, **variables})

    def _render(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], now: datetime | None = None
    ) -> str:
        if not self.chat_template:
            raise RocLabError(f"{self.origin}: this model has no chat template; use generate without --chat")
        names = {"bos_token": self.bos_token or "", "eos_token": self.eos_token or ""}
        return render(self.chat_template, messages, {**names, **variables}, self.origin, now)

    @cached_property
    def _public_names(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.control, key=len, reverse=True))) or "(?!)")

    @cached_property
    def _mask(self) -> Mask:
        return Mask(self.control, self.origin)

    @property
    def definition(self) -> Mapping[str, Any]:
        """What the library was built from: a tokenizer.json's content, the control tokens under their inner names."""
        return self._definition

    def public_definition(self) -> dict[str, Any]:
        """A tokenizer.json's content with the control tokens under their own names, as other programs read it."""
        names = {f"{_OPEN}{i}{_CLOSE}": name for name, i in self.control.items()}
        model = self._definition["model"]
        vocabulary = {names.get(token, token): i for token, i in model["vocab"].items()}
        added = [{**token, "content": self.id_to_token(token["id"])} for token in self._definition["added_tokens"]]
        content = {**self._definition, "added_tokens": added, "model": {**model, "vocab": vocabulary}}
        if self.adds_bos:
            bos, text = {"SpecialToken": {"id": self.bos_token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
            pair = [bos, text, {"Sequence": {"id": "B", "type_id": 1}}]
            known = {self.bos_token: {"id": self.bos_token, "ids": [self.bos_token_id], "tokens": [self.bos_token]}}
            content["post_processor"] = {
                "type": "TemplateProcessing", "single": [bos, text], "pair": pair, "special_tokens": known,
            }  # fmt: skip
        return content

    @property
    def has_thinking(self) -> bool:
        """Whether the template knows a thinking mode that can be switched."""
        return "enable_thinking" in (self.chat_template or "")

    @property
    def uses_date(self) -> bool:
        """Whether the template asks what day it is."""
        return "strftime_now" in (self.chat_template or "")

    # ── ids → text ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._largest_id + 1

    def token_to_id(self, name: str) -> int | None:
        """The id of a control token by its public name, or of an ordinary token as the vocabulary writes it."""
        return self.control.get(name, self._definition["model"]["vocab"].get(name))

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary writes it (a space is Ġ or ▁ there); None for an id without a token."""
        return self._control_names.get(token_id, self._names.get(token_id))

    def token_bytes(self, token_id: int, *, control: bool = False) -> bytes:
        """The bytes a token stands for; a control token gives nothing, or its name with `control=True`."""
        if token_id in self._control_names:
            return self._control_names[token_id].encode() if control else b""
        name = self._names.get(token_id, "")
        if self._byte_level:
            if all(char in BYTE_OF for char in name):
                return bytes(BYTE_OF[char] for char in name)
            return name.encode()
        if re.fullmatch(r"<0x[0-9A-F]{2}>", name):  # SentencePiece's byte fallback
            return bytes([int(name[3:5], 16)])
        return name.replace("▁", " ").encode()

    def decode_bytes(self, ids: Iterable[int], *, control: bool = False) -> bytes:
        """The bytes of the text that the ids stand for."""
        data = b"".join(self.token_bytes(i, control=control) for i in ids)
        return data[1:] if self._lead_space and data.startswith(b" ") else data

    def decode(self, ids: Iterable[int], *, control: bool = False) -> str:
        """Ids → text; bytes that are no UTF-8 become U+FFFD. Control tokens vanish, or show with `control=True`."""
        return self.decode_bytes(ids, control=control).decode("utf-8", errors="replace")


def _with_added_tokens(definition: dict[str, Any], folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """A SentencePiece vocabulary with the tokens that tokenizer_config.json and added_tokens.json add to it."""
    more = {int(i): dict(token) for i, token in (config.get("added_tokens_decoder") or {}).items()}
    if (folder / "added_tokens.json").exists():
        for name, i in read_json_object(folder / "added_tokens.json").items():
            more.setdefault(i, {"content": name, "special": True})
    known = {token["id"] for token in definition["added_tokens"]} | set(definition["model"]["vocab"].values())
    added = [{**ADDED_TOKEN, **token, "id": i} for i, token in sorted(more.items()) if i not in known]
    return {**definition, "added_tokens": [*definition["added_tokens"], *added]}


def _pairs(merges: Sequence[Any]) -> Iterable[Sequence[str]]:
    """The two halves of each merge; older files write it as one text with a space between."""
    return (m.split(" ", 1) if isinstance(m, str) else m for m in merges)


def _library_tokenizer(definition: Mapping[str, Any]) -> LibraryTokenizer:
    """What `LibraryTokenizer.from_str(json.dumps(definition))` gives, in a third of its time: vocabulary and merges are
    handed over as they are instead of through two megabytes of JSON."""
    model = definition["model"]
    options = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
               "ignore_merges")  # fmt: skip
    rest = {**definition, "added_tokens": [], "model": {**model, "vocab": {}, "merges": []}}
    library = LibraryTokenizer.from_str(json.dumps(rest))
    given = {key: model[key] for key in options if model.get(key) is not None}
    library.model = models.BPE(vocab=model["vocab"], merges=model["merges"], **given)
    for token in definition["added_tokens"]:
        flags = {key: token.get(key, False) for key in ADDED_TOKEN}
        add = library.add_special_tokens if token.get("special") else library.add_tokens
        add([AddedToken(token["content"], special=bool(token.get("special")), **flags)])
    return library


def _token_text(token: Any) -> str | None:
    text = token["content"] if isinstance(token, Mapping) else token
    if text is not None and not isinstance(text, str):
        raise TypeError(f"found {text!r}")
    return text


def _has_part(part: Any, kind: str) -> bool:
    """Whether a tokenizer.json component, or one inside its sequence, is of this type."""
    if not isinstance(part, Mapping):
        return False
    return part.get("type") == kind or any(_has_part(p, kind) for p in part.get("decoders", []))


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file of a model. Raises CheckpointError if it is missing, damaged or holds no object."""
    try:
        value = read_json(path)
    except RocLabError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value
