"""Mistakes of generation: loop, cache and sampling filters."""

from __future__ import annotations

import numpy as np

from roclab.course.verify.mistakes import Mistake
from roclab.course.verify.reference import Array


class GenerationMistake(Mistake):
    component = "generation"


class MaxLengthCountsNewTokens(GenerationMistake):
    """max_length is taken as the number of new tokens: it counts the prompt too."""

    def total_length(self, prompt: int, max_length: int) -> int:
        return prompt + max_length


class OneTooMany(GenerationMistake):
    """One token too many is generated: the result has max_length tokens, the prompt included."""

    def total_length(self, prompt: int, max_length: int) -> int:
        return max_length + 1


class OneTooFew(GenerationMistake):
    """One token too few is generated: the result has max_length tokens, the prompt included."""

    def total_length(self, prompt: int, max_length: int) -> int:
        return max_length - 1


class PromptLeftOut(GenerationMistake):
    """Only the new tokens are returned: the result begins with the prompt."""

    def returned(self, ids: Array, prompt: int) -> Array:
        return ids[:, prompt:]


class LeastLikely(GenerationMistake):
    """The least likely token is taken: greedy decoding takes the largest logit."""

    def next_logits(self, ids: Array, prompt: int) -> Array:
        return -super().next_logits(ids, prompt)


class FirstPosition(GenerationMistake):
    """The next token is read from the first position's logits: it is the last one's, logits[:, -1]."""

    def next_logits(self, ids: Array, prompt: int) -> Array:
        return self.logits(ids)[:, 0]


class SecondToLastPosition(GenerationMistake):
    """The next token is read from the second last position's logits: it is the last one's, logits[:, -1]."""

    def next_logits(self, ids: Array, prompt: int) -> Array:
        return self.logits(ids)[:, -2]


class NoContext(GenerationMistake):
    """Each step sees the last token alone: without a cache the whole text goes in at every step."""

    def next_logits(self, ids: Array, prompt: int) -> Array:
        return self.logits(ids[:, -1:])[:, -1]


class NoContextAfterPrompt(GenerationMistake):
    """After the prompt each step sees the last token alone: the cache is lost, or not used."""

    def next_logits(self, ids: Array, prompt: int) -> Array:
        return super().next_logits(ids if ids.shape[1] == prompt else ids[:, -1:], prompt)


class PromptOnly(GenerationMistake):
    """Each step reads the prompt alone: generated tokens must be appended to what the model reads."""

    def next_logits(self, ids: Array, prompt: int) -> Array:
        return super().next_logits(ids[:, :prompt], prompt)


class CacheMistake(GenerationMistake):
    """With the cache, new tokens stand at position 0: they go on counting where the cached ones end."""

    prompt = 10**9

    def next_logits(self, ids: Array, prompt: int) -> Array:
        self.prompt = prompt
        return super().next_logits(ids, prompt)

    def positions(self, T: int) -> Array:
        return np.where(np.arange(T) < self.prompt, np.arange(T), self.later(np.arange(T)))

    def later(self, positions: Array) -> Array:
        return 0 * positions


class CacheOneAhead(CacheMistake):
    """With the cache, new tokens stand one position too far: the first new one stands at the cached length."""

    def later(self, positions: Array) -> Array:
        return positions + 1


class CacheOneBehind(CacheMistake):
    """With the cache, new tokens stand one position too early: the first new one stands at the cached length."""

    def later(self, positions: Array) -> Array:
        return positions - 1


class EndIgnored(GenerationMistake):
    """eos_token_id is ignored: generation ends there."""

    def ends(self, token: int) -> bool:
        return False


class TemperatureMultiplied(GenerationMistake):
    """The logits are multiplied by the temperature: they are divided by it."""

    def heated(self, logits: Array, temperature: float) -> Array:
        return logits * temperature


class TemperatureIgnored(GenerationMistake):
    """The temperature is ignored: the logits are divided by it."""

    def heated(self, logits: Array, temperature: float) -> Array:
        return logits


class TopKIgnored(GenerationMistake):
    """top_k is ignored: only the k most likely tokens may be drawn."""

    def in_top_k(self, logits: Array, k: int) -> Array:
        return np.ones(len(logits), dtype=bool)


class TopKOneMore(GenerationMistake):
    """top_k keeps one token too many."""

    def in_top_k(self, logits: Array, k: int) -> Array:
        return super().in_top_k(logits, k + 1)


class TopKOneLess(GenerationMistake):
    """top_k keeps one token too few: the k-th stays (compare with <, not with <=)."""

    def in_top_k(self, logits: Array, k: int) -> Array:
        return super().in_top_k(logits, k - 1) if k < len(logits) else super().in_top_k(logits, k)


class TopKSmallest(GenerationMistake):
    """top_k keeps the least likely tokens: it keeps the most likely."""

    def in_top_k(self, logits: Array, k: int) -> Array:
        return logits <= np.sort(logits)[min(k, len(logits)) - 1]


class TopPIgnored(GenerationMistake):
    """top_p is ignored: only the most likely tokens that make up this probability may be drawn."""

    def in_top_p(self, p: Array, top_p: float) -> Array:
        return np.ones(len(p), dtype=bool)


class TopPDropsCrossing(GenerationMistake):
    """top_p drops the token that crosses the threshold: it stays (shift the comparison by one)."""

    def in_top_p(self, p: Array, top_p: float) -> Array:
        order = np.argsort(-p)
        kept = np.zeros(len(p), dtype=bool)
        kept[order[np.cumsum(p[order]) <= top_p]] = True
        return kept | (p == p.max()) if top_p < 1 else np.ones(len(p), dtype=bool)


class TopPOneMore(GenerationMistake):
    """top_p keeps one token too many: it stops at the token that reaches the threshold."""

    def in_top_p(self, p: Array, top_p: float) -> Array:
        order = np.argsort(-p)
        kept = super().in_top_p(p, top_p)
        kept[order[min(kept.sum(), len(p) - 1)]] = True
        return kept


class TopPAscending(GenerationMistake):
    """top_p sums from the least likely token up: sort in descending order first."""

    def in_top_p(self, p: Array, top_p: float) -> Array:
        order = np.argsort(p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        kept = np.zeros(len(p), dtype=bool)
        kept[order[before < top_p]] = True
        return kept if top_p < 1 else np.ones(len(p), dtype=bool)


class TopPNotScattered(GenerationMistake):
    """top_p's mask is in sorted order but applied to the unsorted logits: scatter it back first."""

    def in_top_p(self, p: Array, top_p: float) -> Array:
        return super().in_top_p(p, top_p)[np.argsort(-p, kind="stable")]


class AlwaysGreedy(GenerationMistake):
    """do_sample=True takes the most likely token: it draws."""

    def draw(self, logits: Array, temperature: float, top_k: int, top_p: float) -> Array:
        return (np.arange(len(logits)) == logits.argmax()).astype(float)


class DrawnUniformly(GenerationMistake):
    """Tokens that pass the filters are drawn with equal chances: they are drawn by their probabilities."""

    def probabilities(self, logits: Array, temperature: float, top_k: int, top_p: float) -> Array:
        kept = super().probabilities(logits, temperature, top_k, top_p) > 0
        return kept / kept.sum()
