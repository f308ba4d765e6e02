"""Mistakes of the decoder's order and residuals, and of the head."""

from __future__ import annotations

import numpy as np

from roclab.course.verify.mistakes import Mistake
from roclab.course.verify.reference import Array, softmax


class DecoderMistake(Mistake):
    component = "decoder"

    def attend_normed(self, x: Array, at: str, norm: str = "input_layernorm") -> Array:
        return self.attention(self.model_norm(x, f"{at}.{norm}"), f"{at}.self_attn")

    def mlp_normed(self, x: Array, at: str, norm: str = "post_attention_layernorm") -> Array:
        return self.layer_mlp(self.model_norm(x, f"{at}.{norm}"), at)


class NoAttentionResidual(DecoderMistake):
    """The residual around attention is missing: x + Attention(RMSNorm(x))."""

    def layer(self, x: Array, at: str) -> Array:
        x = self.attend_normed(x, at)
        return x + self.mlp_normed(x, at)


class NoMlpResidual(DecoderMistake):
    """The residual around the MLP is missing: x + SwiGLU(RMSNorm(x))."""

    def layer(self, x: Array, at: str) -> Array:
        return self.mlp_normed(x + self.attend_normed(x, at), at)


class NoResidual(DecoderMistake):
    """Both residuals are missing: x + Attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x))."""

    def layer(self, x: Array, at: str) -> Array:
        return self.mlp_normed(self.attend_normed(x, at), at)


class AttentionResidualFromNormed(DecoderMistake):
    """The residual around attention is taken after the norm: it is the x before input_layernorm."""

    def layer(self, x: Array, at: str) -> Array:
        x = self.model_norm(x, f"{at}.input_layernorm")
        x = x + self.attention(x, f"{at}.self_attn")
        return x + self.mlp_normed(x, at)


class MlpResidualFromNormed(DecoderMistake):
    """The residual around the MLP is taken after the norm: it is the x before post_attention_layernorm."""

    def layer(self, x: Array, at: str) -> Array:
        x = self.model_norm(x + self.attend_normed(x, at), f"{at}.post_attention_layernorm")
        return x + self.layer_mlp(x, at)


class MlpResidualFromInput(DecoderMistake):
    """The residual around the MLP adds the layer's input: it adds the x after attention."""

    def layer(self, x: Array, at: str) -> Array:
        return x + self.mlp_normed(x + self.attend_normed(x, at), at)


class PostNorm(DecoderMistake):
    """The norms come after the residual sums (post-norm): they come before attention and before the MLP (pre-norm)."""

    def layer(self, x: Array, at: str) -> Array:
        x = self.model_norm(x + self.attention(x, f"{at}.self_attn"), f"{at}.input_layernorm")
        return self.model_norm(x + self.layer_mlp(x, at), f"{at}.post_attention_layernorm")


class OutputNorm(DecoderMistake):
    """The norms are applied to what attention and the MLP return: they are applied to what they read."""

    def layer(self, x: Array, at: str) -> Array:
        x = x + self.model_norm(self.attention(x, f"{at}.self_attn"), f"{at}.input_layernorm")
        return x + self.model_norm(self.layer_mlp(x, at), f"{at}.post_attention_layernorm")


class NoInputNorm(DecoderMistake):
    """Attention reads x without input_layernorm."""

    def layer(self, x: Array, at: str) -> Array:
        x = x + self.attention(x, f"{at}.self_attn")
        return x + self.mlp_normed(x, at)


class NoMlpNorm(DecoderMistake):
    """The MLP reads x without post_attention_layernorm."""

    def layer(self, x: Array, at: str) -> Array:
        x = x + self.attend_normed(x, at)
        return x + self.layer_mlp(x, at)


class NormsSwapped(DecoderMistake):
    """The two norms of a layer are swapped: input_layernorm stands before attention, post_attention_layernorm before
    the MLP."""

    def layer(self, x: Array, at: str) -> Array:
        x = x + self.attend_normed(x, at, "post_attention_layernorm")
        return x + self.mlp_normed(x, at, "input_layernorm")


class InputNormTwice(DecoderMistake):
    """The MLP reads input_layernorm's output: it has post_attention_layernorm."""

    def layer(self, x: Array, at: str) -> Array:
        x = x + self.attend_normed(x, at)
        return x + self.mlp_normed(x, at, "input_layernorm")


class Parallel(DecoderMistake):
    """Attention and MLP read the same x (parallel, as in GPT-J): the MLP reads x after attention was added."""

    def layer(self, x: Array, at: str) -> Array:
        return x + self.attend_normed(x, at) + self.mlp_normed(x, at)


class MlpFirst(DecoderMistake):
    """The MLP comes before attention: attention comes first."""

    def layer(self, x: Array, at: str) -> Array:
        x = x + self.mlp_normed(x, at)
        return x + self.attend_normed(x, at)


class NoMlp(DecoderMistake):
    """The MLP's output is not added to the stream."""

    def layer(self, x: Array, at: str) -> Array:
        return x + self.attend_normed(x, at)


class NoAttention(DecoderMistake):
    """Attention's output is not added to the stream."""

    def layer(self, x: Array, at: str) -> Array:
        return x + self.mlp_normed(x, at)


class LastLayerSkipped(DecoderMistake):
    """The last layer is not run."""

    def layers(self) -> list[int]:
        return super().layers()[:-1]


class FirstLayerSkipped(DecoderMistake):
    """The first layer is not run."""

    def layers(self) -> list[int]:
        return super().layers()[1:]


class OneLayerRepeated(DecoderMistake):
    """The first layer is run every time: the layers are run one after the other."""

    def layers(self) -> list[int]:
        return [0] * len(super().layers())


class LayersShared(DecoderMistake):
    """All layers are one and the same, as ModuleList([layer] * N) makes them: each needs weights of its own."""

    def layers(self) -> list[int]:
        return super().layers()[-1:] * len(super().layers())


class OnlyLastLayer(DecoderMistake):
    """Every layer reads the embeddings, so only the last one counts: each reads what the one before it returned."""

    def layers(self) -> list[int]:
        return super().layers()[-1:]


class LayersReversed(DecoderMistake):
    """The layers are run from last to first."""

    def layers(self) -> list[int]:
        return super().layers()[::-1]


class EmbeddingScaled(DecoderMistake):
    """The embeddings are multiplied by √hidden_size, as in the first transformer and Gemma: RocLM takes them as they
    are."""

    def embed(self, ids: Array) -> Array:
        return super().embed(ids) * np.sqrt(self.config["hidden_size"])


class EmbeddingScaledDown(DecoderMistake):
    """The embeddings are divided by √hidden_size: RocLM takes them as they are."""

    def embed(self, ids: Array) -> Array:
        return super().embed(ids) / np.sqrt(self.config["hidden_size"])


class EmbeddingNormed(DecoderMistake):
    """The embeddings pass through model.norm: it stands once, behind the last layer."""

    def embed(self, ids: Array) -> Array:
        return self.final(super().embed(ids))


class NormAfterEveryLayer(DecoderMistake):
    """model.norm is applied after every layer: it stands once, behind the last."""

    def layer(self, x: Array, at: str) -> Array:
        return self.final(super().layer(x, at))


class HeadMistake(Mistake):
    component = "head"


class NoFinalNorm(HeadMistake):
    """The final norm (model.norm) before the head is missing."""

    def final(self, x: Array) -> Array:
        return x


class FinalNormTwice(HeadMistake):
    """The final norm (model.norm) is applied twice."""

    def final(self, x: Array) -> Array:
        return super().final(super().final(x))


class NeverTied(HeadMistake):
    """tie_word_embeddings is ignored: head and embedding are separate where they must share one matrix."""

    def head_matrix(self) -> Array:
        return self.weights["lm_head.weight"]


class AlwaysTied(HeadMistake):
    """The head always shares the embedding's matrix: with tie_word_embeddings False it has its own."""

    def head_matrix(self) -> Array:
        return self.weights["model.embed_tokens.weight"]


class ProbabilitiesReturned(HeadMistake):
    """The model returns probabilities: it returns logits, before any softmax."""

    def head(self, x: Array) -> Array:
        return softmax(super().head(x), -1)


class LogProbabilitiesReturned(HeadMistake):
    """The model returns log-probabilities: it returns logits, before any log_softmax."""

    def head(self, x: Array) -> Array:
        return np.log(softmax(super().head(x), -1))


class HeadScaled(HeadMistake):
    """The logits are divided by √hidden_size: they are the head's product as it is."""

    def head(self, x: Array) -> Array:
        return super().head(x) / np.sqrt(self.config["hidden_size"])


class LastPositionOnly(HeadMistake):
    """The model returns the last position's logits alone: model(input_ids) returns (B, T, vocab_size)."""

    def head(self, x: Array) -> Array:
        return super().head(x)[:, -1:]
