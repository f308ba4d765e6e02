"""The configuration's and generate's defaults may be written in any way that means the same."""

from __future__ import annotations

import pytest

from tests.course.verify.conftest import failed, quick
from tests.course.verify.variants import PLAIN, SIGNATURE, edited

DEFAULTS = "checkpoint: the configuration's defaults"
CONFIG = PLAIN[PLAIN.index("@dataclass") : PLAIN.index("class RocLMRMSNorm")]
FIELDS = [line.strip() for line in CONFIG.splitlines() if line.startswith("    ")]
LAYERS = "layer_types: list | None = None"
FILLED = f"""{LAYERS}

    def __post_init__(self):
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers"""
KEYWORDS = ", ".join(f.split(":")[0] + " =" + f.split("=")[1] for f in FIELDS)
NAMES = [f.split(":")[0] for f in FIELDS]
CREATED = PLAIN[PLAIN.index("    unknown = ") : PLAIN.index("    return RocLMForCausalLM(")]


def with_config(text: str) -> str:
    """plain.py with another configuration class, which refuses unknown keywords itself."""
    return PLAIN.replace(CONFIG, text + "\n\n\n").replace(CREATED, "")


RIGHT = {
    "filled in __post_init__": edited((LAYERS, FILLED)),
    "filled with a tuple": edited((LAYERS, FILLED.replace("] *", ",) *").replace("= [", "= ("))),
    "filled in a frozen dataclass": edited(
        (("@dataclass\n", "@dataclass(frozen=True)\n"),
         (LAYERS, FILLED.replace("self.layer_types = [", "kinds = [")
          + '\n            object.__setattr__(self, "layer_types", kinds)'))
    ),
    "keyword-only with slots": edited((("@dataclass\n", "@dataclass(kw_only=True, slots=True)\n"), (LAYERS, FILLED))),
    "empty list and dict": edited(
        ((LAYERS, "layer_types: list = field(default_factory=list)"),
         ("rope_scaling: dict | None = None", "rope_scaling: dict = field(default_factory=dict)"),
         ("dataclass, fields", "dataclass, field, fields"))
    ),
    "default kind of rope_scaling": edited(
        (("rope_scaling: dict | None = None",
          'rope_scaling: dict = field(default_factory={"rope_type": "default"}.copy)'),
         ("dataclass, fields", "dataclass, field, fields"))
    ),
    "a property": edited(
        (LAYERS, 'extra: int = 0\n\n    @property\n    def layer_types(self):\n'
                 '        return ["full_attention"] * self.num_hidden_layers')
    ),
    "extra fields": edited((LAYERS, f"{LAYERS}\n    qk_norm: bool = True\n    dtype: object = torch.float32")),
    "whole numbers for floats and floats for whole numbers": edited(
        (("rope_theta: float = 1000000.0", "rope_theta: int = 10**6"), ("dropout: float = 0.0", "dropout: int = 0"),
         ("rms_norm_eps: float = 1e-6", "rms_norm_eps: float = 0.000001"))
    ),
    "numbers of torch": edited(
        (("rope_theta: float = 1000000.0", "rope_theta: object = torch.tensor(1e6)"),
         ("rms_norm_eps: float = 1e-6", "rms_norm_eps: object = torch.tensor(1e-6)"))
    ),
    "head_dim filled": edited(
        (("head_dim: int = 128", "head_dim: int | None = None"),
         (LAYERS, f"{LAYERS}\n\n    def __post_init__(self):\n        self.head_dim = self.head_dim or 128"))
    ),
    "pad_token_id filled": edited(
        (LAYERS, f"{LAYERS}\n\n    def __post_init__(self):\n        if self.pad_token_id is None:\n"
                 "            self.pad_token_id = self.eos_token_id")
    ),
    "swish": edited(('hidden_act: str = "silu"', 'hidden_act: str = "swish"')),
    "a plain class": with_config(
        f"class RocLMConfig:\n    def __init__(self, *, {KEYWORDS}):\n"
        "        self.__dict__.update({n: v for n, v in locals().items() if n != 'self'})"
    ),
    "a plain class with **values": with_config(
        f"class RocLMConfig:\n    DEFAULTS = dict({KEYWORDS})\n\n    def __init__(self, **values):\n"
        "        for name in set(values) - set(self.DEFAULTS):\n            raise TypeError(f'unknown: {name}')\n"
        "        vars(self).update(self.DEFAULTS, **values)"
    ),
    "a NamedTuple": with_config(
        "import typing\n\n\nclass RocLMConfig(typing.NamedTuple):\n" + "\n".join(f"    {f}" for f in FIELDS)
    ),
    "generate's defaults set inside": edited(
        ((SIGNATURE, "max_length=None, temperature=None, top_k=None, top_p=None, do_sample=None"),
         ("        cache = Cache(self.config)", """        given = (max_length, temperature, top_k, top_p, do_sample)
        defaults = (50, 1.0, 50, 0.9, True)
        chosen = [d if g is None else g for g, d in zip(given, defaults)]
        max_length, temperature, top_k, top_p, do_sample = chosen
        cache = Cache(self.config)"""))
    ),
    "generate's arguments by keyword": edited((SIGNATURE, f"*, {SIGNATURE}")),
}  # fmt: skip


@pytest.mark.parametrize("name", quick(RIGHT, 3))
def test_a_right_way_to_write_defaults_passes(check, name):
    report = check(RIGHT[name])
    assert report["passed"], failed(report)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (LAYERS, FILLED.replace("self.num_hidden_layers", "27"), "layer_types is"),
        (LAYERS, FILLED.replace("full", "sliding"), "layer_types is"),
        ("rope_theta: float = 1000000.0", "rope_theta: float = 10000.0", "rope_theta is 10000.0, not 1000000.0"),
        ("head_dim: int = 128", "head_dim: int = 1024 // 16", "head_dim is 64, not 128"),
        ("pad_token_id: int | None = None", "pad_token_id: int = 5", "pad_token_id is 5, not None"),
        ("rms_norm_eps: float = 1e-6", "rms_norm_eps: float = 1.1e-6", "rms_norm_eps is 1.1e-06"),
        ("tie_word_embeddings: bool = True", "tie_word_embeddings: bool = False", "tie_word_embeddings is False"),
        ("    bos_token_id: int = 151643\n", "", "bos_token_id is '(missing)'"),
    ],
)
def test_another_default_fails(check, old, new, words):
    report = check(PLAIN.replace(old, new))
    assert words in failed(report)[DEFAULTS]["hint"]
    assert new == "" or set(failed(report)) == {DEFAULTS}


@pytest.mark.parametrize(("name", "value"), [("temperature", "0.3"), ("top_p", "1.0"), ("do_sample", "False")])
def test_another_default_inside_generate_fails(check, name, value):
    given = {"temperature": "1.0", "top_p": "0.9", "do_sample": "True"}[name]
    source = edited(
        (
            (SIGNATURE, SIGNATURE.replace(f"{name}={given}", f"{name}=None")),
            (
                "        cache = Cache(self.config)",
                f"        {name} = {value} if {name} is None else {name}\n        cache = Cache(self.config)",
            ),
        )
    )
    assert set(failed(check(source))) == {"generation: the signature"}
