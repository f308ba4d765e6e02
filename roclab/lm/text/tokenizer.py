"""Text to token ids and back, on top of the `tokenizers` library; the chat template lives here too.

The one rule that everything below serves: **text typed by somebody never becomes a control token.** Control tokens
(`<|im_start|>`, `<think>`, …) are renamed, inside the library's tokenizer, to names no text can hold. Only a chat
template may write the public names; whatever a message contains is ordinary text, spelled out in ordinary tokens.

    message texts → masked → template renders → public names become inner names → unmasked → token ids

Masked: every character that begins a control token's name stands as a noncharacter while the template runs. (A template
that itself put a name together out of fixed text and a message's, such as `</{{ word }}>`, would defeat that.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as LibraryTokenizer

from roclab.core.exceptions import CheckpointError, RocLabError
from roclab.core.files import read_json

# Unicode's noncharacters, reserved for use inside a program. In text that comes from outside they are replaced.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_STAND_INS = [chr(i) for i in range(0xFDD2, 0xFDF0)]
NOT_TEXT = re.compile("[\ufdd0\ufdd1\ud800-\udfff]")  # lone surrogates too: bytes that were no UTF-8
_NOT_CHAT = re.compile("[\ufdd0-\ufdef\ud800-\udfff]")  # the stand-ins are in use while a template runs


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where it is printable, else a character from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


BYTE_OF = {char: byte for byte, char in bytes_to_unicode().items()}


class Tokenizer:
    """Encodes ordinary text, renders chats, decodes ids.

    Attributes: `control` (name → id of every control token), `bos_token_id`, `eos_token_ids`, `chat_template` (Jinja
    source or None), `adds_bos` (whether the model wants a BOS before plain text).
    """

    def __init__(
        self,
        definition: Mapping[str, Any],
        *,
        bos_token: str | None = None,
        eos_tokens: Sequence[str] = (),
        adds_bos: bool = False,
        chat_template: str | None = None,
        origin: str = "tokenizer",
    ):
        """`definition` is the content of a tokenizer.json; `origin` names it in messages."""
        self.origin = origin
        self.chat_template = chat_template
        try:
            self._build(definition, [name for name in (bos_token, *eos_tokens) if name is not None])
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exception; a damaged definition may raise anything
            what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
            raise CheckpointError(f"{origin}: the tokenizer cannot be built: {what}") from None
        self.bos_token = bos_token
        self.eos_token = eos_tokens[0] if eos_tokens else None
        self.bos_token_id = self.token_to_id(bos_token) if bos_token else None
        self.eos_token_ids = [i for name in eos_tokens if (i := self.token_to_id(name)) is not None]
        self.adds_bos = adds_bos and self.bos_token_id is not None

    def _build(self, definition: Mapping[str, Any], named: Sequence[str]) -> None:
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
            added.setdefault(name, {**_ADDED, "content": name, "id": model["vocab"].get(name), "special": True})
        definition = {**definition, "added_tokens": list(added.values())}
        # Runs of spaces and the like are added tokens too in some vocabularies, and are ordinary text.
        self.control = {name: token["id"] for name, token in added.items() if name.strip()}
        self._definition = self._with_inner_names(definition)
        vocabulary = self._definition["model"]["vocab"]
        self._names = dict(zip(vocabulary.values(), vocabulary, strict=True))
        self._names |= {token["id"]: token["content"] for token in self._definition["added_tokens"]}
        self._control_names = {i: name for name, i in self.control.items()}
        self._largest_id = max(self._names)
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
        """From tokenizer.json, tokenizer_config.json and chat_template.jinja, as Hugging Face directories hold them.
        Raises CheckpointError if tokenizer.json is missing or damaged."""
        path = Path(path)
        definition = read_json_object(path / "tokenizer.json")
        config = read_json_object(path / "tokenizer_config.json") if (path / "tokenizer_config.json").exists() else {}
        template: Any = config.get("chat_template")
        if (path / "chat_template.jinja").exists():
            try:
                template = (path / "chat_template.jinja").read_text(encoding="utf-8")
            except (ValueError, OSError) as error:
                raise CheckpointError(f"{path / 'chat_template.jinja'}: cannot be read: {error}") from None
        if isinstance(template, list):  # several by name: tool use has its own in some models
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        bos, eos = (_token_text(config.get(key)) for key in ("bos_token", "eos_token"))
        adds_bos = config.get("add_bos_token")
        if adds_bos is None:  # the post-processor knows
            adds_bos = bos is not None and bos in json.dumps(definition.get("post_processor"), ensure_ascii=False)
        return cls(
            definition, bos_token=bos, eos_tokens=[eos] if eos else [], adds_bos=bool(adds_bos),
            chat_template=template, origin=str(path / "tokenizer.json"),
        )  # fmt: skip

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], origin: str) -> Tokenizer:
        """Rebuilt from a GGUF file's metadata. Raises CheckpointError for a kind of vocabulary or pre-tokenizer that
        is not supported: a wrong guess would split texts otherwise than the model was trained on."""
        kind = metadata.get("tokenizer.ggml.model")
        if kind != "gpt2":
            raise CheckpointError(f"{origin}: tokenizer model {kind!r} is not supported (supported: gpt2, that is BPE)")
        pre = metadata.get("tokenizer.ggml.pre", "")
        pre = _OTHER_NAMES.get(pre, pre) if isinstance(pre, str) else repr(pre)
        if pre not in PRE_TOKENIZERS:
            raise CheckpointError(
                f"{origin}: pre-tokenizer {pre!r} is not supported (supported: {', '.join(PRE_TOKENIZERS)})"
            )
        try:
            tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
        except KeyError as error:
            raise CheckpointError(f"{origin}: the tokenizer is incomplete: {error.args[0]} is missing") from None
        types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
        for key, entries, of in (("tokens", tokens, str), ("merges", merges, str), ("token_type", types, int)):
            if not isinstance(entries, list) or not set(map(type, entries)) <= {of}:
                raise CheckpointError(f"{origin}: tokenizer.ggml.{key} is damaged; fetch the file again")
        if len(types) != len(tokens):
            raise CheckpointError(f"{origin}: {len(tokens)} tokens but {len(types)} token types; fetch the file again")
        added = [
            {**_ADDED, "id": i, "content": tokens[i], "special": kind == CONTROL}
            for i, kind in enumerate(types)
            if kind in (CONTROL, USER_DEFINED)
        ]
        vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
        if UNUSED in types:  # rows of the embedding that stand for nothing
            vocabulary = {token: i for token, i in vocabulary.items() if types[i] != UNUSED}
        definition = {
            "version": "1.0",
            "added_tokens": added,
            **PRE_TOKENIZERS[pre],
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                "ignore_merges": pre == "llama-bpe",  # Llama 3 takes a whole word from the vocabulary if it is there
                "vocab": vocabulary, "merges": merges,
            },
        }  # fmt: skip

        def named(*keys: str) -> list[str]:
            ids = (metadata.get(f"tokenizer.ggml.{key}_token_id") for key in keys)
            return list(dict.fromkeys(tokens[i] for i in ids if isinstance(i, int) and 0 <= i < len(tokens)))

        bos, template = named("bos"), metadata.get("tokenizer.chat_template")
        return cls(
            definition, bos_token=bos[0] if bos else None, eos_tokens=named(*END_TOKENS),
            adds_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe")),
            chat_template=template if isinstance(template, str) else None, origin=origin,
        )  # fmt: skip

    # ── text → ids ──────────────────────────────────────────────────────────────────────────────────────────────

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Ordinary text → ids; control tokens spelled in it stay text. `bos`: None does what the model wants."""
        ids = self._library.encode(NOT_TEXT.sub("\ufffd", text), add_special_tokens=False).ids
        if self.adds_bos if bos is None else bos:
            if self.bos_token_id is None:
                raise RocLabError(f"{self.origin}: this vocabulary has no BOS token")
            ids = [self.bos_token_id, *ids]
        return ids

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        **variables: Any,
    ) -> list[int]:
        """Messages ({"role", "content", …}) → ids through the chat template. `enable_thinking` None leaves the choice
        to the template; further `variables` (tools, …) reach it as they are. Raises RocLabError without a template,
        or with the template's own complaint."""
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        text = self._render(
            [{key: item if key == "role" else self._masked(item) for key, item in m.items()} for m in messages],
            add_generation_prompt=add_generation_prompt,
            **{name: self._masked(value) for name, value in variables.items()},
        )
        text = self._public_names.sub(lambda m: f"{_OPEN}{self.control[m.group()]}{_CLOSE}", text)
        for first, stand_in in self._mask.items():
            text = text.replace(stand_in, first)
        return self._library.encode(text, add_special_tokens=False).ids

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The template's text as other programs would see it, for reading only: control tokens by their names."""
        return self._render(list(messages), **{"add_generation_prompt": True, **variables})

    def _masked(self, value: Any) -> Any:
        """A copy in which no string holds a control token: a stand-in takes the place of characters that begin one."""
        if isinstance(value, str):
            value = _NOT_CHAT.sub("\ufffd", value)
            for first, stand_in in self._mask.items():
                value = value.replace(first, stand_in)
            return value
        if isinstance(value, Mapping):
            return {self._masked(key): self._masked(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._masked(item) for item in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise RocLabError(f"a chat may hold texts, numbers, lists and dicts, not {type(value).__name__}")

    @cached_property
    def _public_names(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.control, key=len, reverse=True))) or "(?!)")

    @cached_property
    def _mask(self) -> dict[str, str]:
        """First character of a control token's name → its stand-in."""
        first = sorted({name[0] for name in self.control})
        if len(first) > len(_STAND_INS):
            raise CheckpointError(f"{self.origin}: control tokens begin with {len(first)} different characters")
        return dict(zip(first, _STAND_INS, strict=False))

    def _render(self, messages: list[Any], **variables: Any) -> str:
        if not self.chat_template:
            raise RocLabError(f"{self.origin}: this model has no chat template; use generate without --chat")
        for message in messages:
            if message.get("role") not in ("system", "user", "assistant", "tool", "developer"):
                raise RocLabError(f"a chat message has the role {message.get('role')!r}")
        try:
            template = _sandbox().from_string(self.chat_template)
            names = {"bos_token": self.bos_token or "", "eos_token": self.eos_token or ""}
            # Templates are written for callers that always pass tools and documents, None if there are none.
            return template.render(**{"tools": None, "documents": None, **names, "messages": messages, **variables})
        except Exception as error:  # a template is a program: it may fail in any way a program can
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RocLabError(f"{self.origin}: the chat template fails: {reason}") from None

    @property
    def definition(self) -> Mapping[str, Any]:
        """What the library was built from: a tokenizer.json's content, the control tokens under their inner names."""
        return self._definition

    @property
    def has_thinking(self) -> bool:
        """Whether the template knows a thinking mode that can be switched."""
        return "enable_thinking" in (self.chat_template or "")

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

    def decode(self, ids: Iterable[int], *, control: bool = False) -> str:
        """Ids → text; bytes that are no UTF-8 become U+FFFD. Control tokens vanish, or show with `control=True`."""
        text = b"".join(self.token_bytes(i, control=control) for i in ids).decode("utf-8", errors="replace")
        return text[1:] if self._lead_space and text.startswith(" ") else text


# The token types of GGUF, and its keys for tokens that end a text.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
END_TOKENS = ("eos", "eot", "eom")

# The flags of an added token in tokenizer.json.
_ADDED = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _split_then_bytes(digits: str) -> dict[str, Any]:
    """The pre-tokenizer that Qwen and Llama 3 share but for the digits: contractions, words with one leading mark,
    numbers, runs of marks, line ends, spaces."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**_BYTE_LEVEL, "use_regex": False}]}


# What a GGUF file names in tokenizer.ggml.pre → the normalizer and pre-tokenizer of that family's tokenizer.json.
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "smollm": {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, {**_BYTE_LEVEL, "use_regex": True}],
        },
    },
    "qwen2": {"normalizer": {"type": "NFC"}, "pre_tokenizer": _split_then_bytes(r"\p{N}")},
    "llama-bpe": {"normalizer": None, "pre_tokenizer": _split_then_bytes(r"\p{N}{1,3}")},
    "gpt2": {"normalizer": None, "pre_tokenizer": {**_BYTE_LEVEL, "use_regex": True}},
}
_OTHER_NAMES = {
    "gpt-2": "gpt2",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
}  # that llama.cpp uses for the same


def _sandbox() -> Any:
    """The Jinja environment chat templates are written for: they come with a model from somewhere, so it is a sandbox
    that lets them read what they are given and nothing else."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(pattern: str) -> str:
        from datetime import datetime

        return datetime.now().strftime(pattern)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        text = json.dumps(value, ensure_ascii=False, **options)
        if not ensure_ascii:
            return text
        # Character by character: an escaped stand-in would no longer be found and taken back.
        return re.sub("[^\x00-\x7f\ufdd2-\ufdef]", lambda m: json.dumps(m.group())[1:-1], text)

    class Generation(Extension):
        """{% generation %} … {% endgeneration %} marks what a model wrote, for training; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = tojson
    functions: dict[str, Callable[..., Any]] = {"raise_exception": raise_exception, "strftime_now": strftime_now}
    environment.globals.update(functions)
    return environment


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
        flags = {key: token.get(key, False) for key in _ADDED}
        add = library.add_special_tokens if token.get("special") else library.add_tokens
        add([AddedToken(token["content"], special=bool(token.get("special")), **flags)])
    return library


def _token_text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, Mapping) else token


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
