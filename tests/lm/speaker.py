"""A runner without weights that says what it is told: for tests of what becomes of a reply."""

from __future__ import annotations

from typing import Any

import torch

from roclab.lm.engine.runner import Runner
from roclab.lm.engine.torch_runner import TorchSequence
from roclab.lm.model import RocLMConfig
from roclab.lm.text.tokenizer import Tokenizer

from .build import CHAT_TEMPLATE, tokenizer_definition

END = "<|im_end|>"


def tokenizer(template: str = CHAT_TEMPLATE, **changes: Any) -> Tokenizer:
    """The byte-level vocabulary of the tests; `changes` of its definition."""
    return Tokenizer(
        {**tokenizer_definition(), **changes}, bos_token="<|endoftext|>", eos_tokens=[END], chat_template=template
    )


def ids_of(tokens: Tokenizer, *parts: str) -> list[int]:
    """Texts and names of control tokens → ids."""
    return [i for part in parts for i in ([tokens.control[part]] if part in tokens.control else tokens.encode(part))]


class Speaker(Runner):
    """Continues any prompt with the ids of `reply`, the last of them for ever. (The prompt is what its sequence holds
    when the first logits are asked for.)"""

    name, activations = "torch", "float32"
    device, dtype = torch.device("cpu"), torch.float32
    batch_invariant = True
    block = 1

    def __init__(self, reply: list[int], context: int = 128):
        self.reply = reply
        self.config = RocLMConfig(
            vocab_size=300, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, max_position_embeddings=context, bos_token_id=0, eos_token_id=2,
        )  # fmt: skip

    def new_sequence(self, capacity: int) -> Any:
        sequence: Any = TorchSequence(self.config, 1, self.device, torch.float32)
        sequence.said = None
        return sequence

    def copy(self, sequence: Any, length: int, capacity: int) -> Any:
        raise AssertionError("nothing is shared: `shareable` is 0")

    def forward(self, work: Any, *, scratch: bool = False) -> torch.Tensor:
        rows = []
        for sequence, ids, wanted in work:
            sequence.ids += ids
            if wanted and sequence.said is None:
                sequence.said = len(sequence.ids)
            ends = range(len(sequence.ids) - wanted + 1, len(sequence.ids) + 1)
            rows += [self.reply[min(max(end - (sequence.said or end), 0), len(self.reply) - 1)] for end in ends]
        return 20.0 * torch.nn.functional.one_hot(torch.tensor(rows), self.config.vocab_size).float()
