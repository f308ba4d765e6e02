"""Mistakes inside RMSNorm and SwiGLU."""

from __future__ import annotations

import math

import numpy as np

from roclab.course.verify.mistakes import Mistake
from roclab.course.verify.reference import Array, sigmoid

# ---- RMSNorm


class NormMistake(Mistake):
    component = "RMSNorm"


class EpsOutsideRoot(NormMistake):
    """eps is added outside the root: it belongs under it, x / √(mean(x²) + ε)."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return g * x / (np.sqrt((x**2).mean(-1, keepdims=True)) + eps)


class NoEps(NormMistake):
    """eps is left out: it belongs under the root, x / √(mean(x²) + ε)."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return g * x / np.sqrt((x**2).mean(-1, keepdims=True))


class EpsSquared(NormMistake):
    """eps is squared under the root: it is added as it is, x / √(mean(x²) + ε)."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return g * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps**2)


class EpsFixed5(NormMistake):
    """The eps that is handed in is ignored and 1e-5 used."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return super().norm(x, g, 1e-5)


class EpsFixed6(NormMistake):
    """The eps that is handed in is ignored and 1e-6 used."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return super().norm(x, g, 1e-6)


class EpsFixed8(NormMistake):
    """The eps that is handed in is ignored and 1e-8 used."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return super().norm(x, g, 1e-8)


class ConfigEpsIgnored(NormMistake):
    """The model does not pass the config's rms_norm_eps to its norms: they use a default, 1e-6."""

    def model_norm(self, x: Array, name: str) -> Array:
        return self.norm(x, self.weights[f"{name}.weight"], 1e-6)


class ConfigEpsIgnored5(NormMistake):
    """The model does not pass the config's rms_norm_eps to its norms: they use a default, 1e-5."""

    def model_norm(self, x: Array, name: str) -> Array:
        return self.norm(x, self.weights[f"{name}.weight"], 1e-5)


class EpsNotPassed(NormMistake):
    left_out: tuple[str, ...] = ()

    def model_norm(self, x: Array, name: str) -> Array:
        if name.split(".")[-1] in self.left_out:
            return self.norm(x, self.weights[f"{name}.weight"], 1e-6)
        return super().model_norm(x, name)


class QkEpsNotPassed(EpsNotPassed):
    """q_norm and k_norm do not get the config's rms_norm_eps: they use a default."""

    left_out = ("q_norm", "k_norm")


class QEpsNotPassed(EpsNotPassed):
    """q_norm does not get the config's rms_norm_eps: it uses a default."""

    left_out = ("q_norm",)


class KEpsNotPassed(EpsNotPassed):
    """k_norm does not get the config's rms_norm_eps: it uses a default."""

    left_out = ("k_norm",)


class LayerEpsNotPassed(EpsNotPassed):
    """input_layernorm and post_attention_layernorm do not get the config's rms_norm_eps: they use a default."""

    left_out = ("input_layernorm", "post_attention_layernorm")


class InputEpsNotPassed(EpsNotPassed):
    """input_layernorm does not get the config's rms_norm_eps: it uses a default."""

    left_out = ("input_layernorm",)


class MlpEpsNotPassed(EpsNotPassed):
    """post_attention_layernorm does not get the config's rms_norm_eps: it uses a default."""

    left_out = ("post_attention_layernorm",)


class Centred(NormMistake):
    """The mean is subtracted, as LayerNorm does: RMSNorm does not centre."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return super().norm(x - x.mean(-1, keepdims=True), g, eps)


class Variance(NormMistake):
    """x is divided by its standard deviation: RMSNorm divides by √mean(x²), without subtracting the mean."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return g * x / np.sqrt(x.var(-1, keepdims=True) + eps)


class UnbiasedVariance(NormMistake):
    """x is divided by torch's var (mean subtracted, n − 1): RMSNorm divides by √mean(x²)."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return g * x / np.sqrt(x.var(-1, keepdims=True, ddof=1) + eps)


class NoRoot(NormMistake):
    """The root is missing: x is divided by mean(x²) + ε, not by its square root."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return g * x / ((x**2).mean(-1, keepdims=True) + eps)


class TimesRoot(NormMistake):
    """x is multiplied by √(mean(x²) + ε): it is divided by it (rsqrt, not sqrt)."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return g * x * np.sqrt((x**2).mean(-1, keepdims=True) + eps)


class SumOfSquares(NormMistake):
    """The squares are summed: RMSNorm takes their mean."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return g * x / np.sqrt((x**2).sum(-1, keepdims=True) + eps)


class MeanOfMagnitudes(NormMistake):
    """x is divided by mean(|x|): RMSNorm divides by √mean(x²)."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return g * x / (np.abs(x).mean(-1, keepdims=True) + eps)


class MeanOverAll(NormMistake):
    """The mean runs over the whole tensor: it is taken over the last dimension of each token alone."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return g * x / np.sqrt((x**2).mean() + eps)


class MeanOverTokens(NormMistake):
    """The mean runs over dimension 1 (the tokens): it is taken over the last dimension."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return g * x / np.sqrt((x**2).mean(1 if x.ndim > 2 else 0, keepdims=True) + eps)


class NoScale(NormMistake):
    """The learnable scale (weight) is not used: the normalised x is multiplied by it."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return super().norm(x, np.ones_like(g), eps)


class ScalePlusOne(NormMistake):
    """x is multiplied by 1 + weight, as Gemma does: RocLM multiplies by weight."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return super().norm(x, 1 + g, eps)


class ScaleAdded(NormMistake):
    """The weight is added like a bias: the normalised x is multiplied by it."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return super().norm(x, np.ones_like(g), eps) + g


class NotNormalised(NormMistake):
    """x is only scaled by the weight: it is not divided by √(mean(x²) + ε)."""

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        return g * x


# ---- SwiGLU


class GatedMistake(Mistake):
    component = "SwiGLU"


class GateAndUpSwapped(GatedMistake):
    """gate and up are swapped: SiLU belongs on gate_proj's output, up_proj's is only multiplied."""

    def gated(self, gate: Array, up: Array) -> Array:
        return super().gated(up, gate)


class Gelu(GatedMistake):
    """The activation is GELU: SwiGLU takes SiLU, z·σ(z)."""

    def activation(self, z: Array) -> Array:
        return z * 0.5 * (1 + np.vectorize(math.erf)(z / np.sqrt(2)))


class GeluTanh(GatedMistake):
    """The activation is GELU (tanh form): SwiGLU takes SiLU, z·σ(z)."""

    def activation(self, z: Array) -> Array:
        return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


class Relu(GatedMistake):
    """The activation is ReLU: SwiGLU takes SiLU, z·σ(z)."""

    def activation(self, z: Array) -> Array:
        return np.maximum(z, 0)


class Sigmoid(GatedMistake):
    """The gate passes through σ(z) alone: SiLU is z·σ(z)."""

    def activation(self, z: Array) -> Array:
        return sigmoid(z)


class Tanh(GatedMistake):
    """The activation is tanh: SwiGLU takes SiLU, z·σ(z)."""

    def activation(self, z: Array) -> Array:
        return np.tanh(z)


class NoActivation(GatedMistake):
    """The activation is missing: SiLU belongs on gate_proj's output."""

    def activation(self, z: Array) -> Array:
        return z


class GateAdded(GatedMistake):
    """gate and up are added: SwiGLU multiplies them."""

    def gated(self, gate: Array, up: Array) -> Array:
        return self.activation(gate) + up


class SiluOfProduct(GatedMistake):
    """SiLU is taken of the product gate·up: it belongs on gate alone, before the product."""

    def gated(self, gate: Array, up: Array) -> Array:
        return self.activation(gate * up)


class SiluOnBoth(GatedMistake):
    """SiLU is taken of gate and of up: it belongs on gate alone."""

    def gated(self, gate: Array, up: Array) -> Array:
        return self.activation(gate) * self.activation(up)


class UpIgnored(GatedMistake):
    """up_proj is not used: the output is down( silu(gate) ⊙ up )."""

    def gated(self, gate: Array, up: Array) -> Array:
        return self.activation(gate)


class GateIgnored(GatedMistake):
    """gate_proj is not used: the output is down( silu(gate) ⊙ up )."""

    def gated(self, gate: Array, up: Array) -> Array:
        return self.activation(up)
