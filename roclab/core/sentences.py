"""A sentence that a program writes about facts, with its evidence; and how numbers are written in it.

Facts are plain data. A rule reads them and returns a `Sentence`: the text, the kind of evidence, the figures that the
text states, and a pointer to the fact. Reports only choose which sentences to show, and where.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

# Kind of evidence -> its words for a reader. A claim (better, harder, …) is "strong" or "moderate" where its p-value
# after Holm's correction is below 0.01 or 0.05 and its 95 % interval leaves out "no difference", else "none".
# "measured": a figure with its interval, nothing is claimed beyond it. "computed": follows without uncertainty.
KINDS = {
    "strong": "strong evidence",
    "moderate": "moderate evidence",
    "none": "not shown",
    "measured": "measured",
    "computed": "",
    "interpretation": "interpretation",  # a reason that nothing here proves
    "test": "what would test it",
}


@dataclass(frozen=True)
class Evidence:
    """What a sentence rests on. `numbers`: figures by name; shares are in [0, 1], "…ci95" is [low, high]."""

    kind: str = "computed"
    numbers: Mapping[str, Any] = field(default_factory=dict)
    n: int | None = None  # images, questions … that were counted
    split: str | None = None  # of the images: val or test

    @property
    def words(self) -> str:
        return KINDS.get(self.kind, self.kind)


@dataclass(frozen=True)
class Sentence:
    text: str
    evidence: Evidence = Evidence()
    key: str = ""  # JSON Pointer of the fact in the JSON file that holds the sentence
    topic: str = ""  # the heading it belongs under, where the text is not ordered by keys

    @property
    def claims(self) -> bool:
        """It says that something is shown."""
        return self.evidence.kind in ("strong", "moderate")

    def json(self) -> dict[str, Any]:
        """Plain data, without what is empty."""
        found = {name: value for name, value in asdict(self).items() if value}
        return found | {"evidence": {k: v for k, v in found["evidence"].items() if v not in (None, {})}}

    @classmethod
    def read(cls, value: Any) -> Sentence:
        """From `json`; also from what version 0.1 wrote: a text alone, the kind alone as evidence, or figures alone."""
        if not isinstance(value, dict):
            return cls(str(value))
        evidence = value.get("evidence", {})
        if isinstance(evidence, str):
            evidence = {"kind": evidence}
        elif "kind" not in evidence:
            evidence = {"numbers": evidence}
        known = {f.name: evidence[f.name] for f in fields(Evidence) if f.name in evidence}
        topic = value.get("topic") or ""
        return cls(str(value.get("text", "")), Evidence(**known), str(value.get("key", "")), str(topic))


def sentences_of(found: Mapping[str, Any]) -> list[Sentence]:
    """The sentences in a tool's JSON."""
    return [Sentence.read(value) for value in found.get("sentences", [])]


def about(facts: Mapping[str, Any], key: str, text: str, kind: str = "measured", **more: Any) -> Sentence:
    """The sentence `text` about the fact at `key`, whose figures (and `more`) become its evidence."""
    fact = lookup(facts, key)
    numbers = {name: value for name, value in fact.items() if _is_figure(value)} if isinstance(fact, dict) else {}
    n = numbers.pop("n", None)
    return Sentence(text, Evidence(kind, numbers | more, n, facts.get("split")), key)


def _is_figure(value: Any) -> bool:
    single = [value] if not isinstance(value, (list, tuple)) else value if len(value) == 2 else [None]
    return all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in single)


def strength(p: float | None, interval_shows: bool = True) -> str:
    """The kind of evidence of a claim with this p-value, whose interval leaves out "no difference" or does not."""
    if p is None or not interval_shows or p >= 0.05:
        return "none"
    return "strong" if p < 0.01 else "moderate"


def pointer(*parts: str | int) -> str:
    """A JSON Pointer (RFC 6901), such as "/pairs/0"; names of arms may hold slashes."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def lookup(facts: Any, key: str) -> Any:
    """The fact that a JSON Pointer leads to."""
    for part in key.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        facts = facts[int(name)] if isinstance(facts, list) else facts[name]
    return facts


# ---- numbers and lists in words


def percent(share: float | None, digits: int = 1) -> str:
    """0.953 -> 95.3 (without the sign, as in tables)."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def number(value: float | None, digits: int = 2, form: str = "f") -> str:
    """`form` "e" for powers of ten."""
    return "–" if value is None else f"{value:.{digits}{form}}"


def interval(ci: Sequence[float] | None, digits: int = 1, scale: float = 100, sign: str = "") -> str:
    """[0.912, 0.951] -> [91.2, 95.1]; `sign` "+" for differences."""
    if ci is None:
        return "–"
    low, high = (round(scale * end, digits) + 0.0 for end in ci)  # no -0.0
    return f"[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def amount(count: float) -> str:
    """A mean over runs: whole where it is whole."""
    return f"{count:.0f}" if abs(count - round(count)) < 0.05 else f"{count:.1f}"


def counted(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def listed(words: Iterable[str], most: int | None = None) -> str:
    """a, b and c; of more than `most`, the first and how many more there are."""
    words = list(words)
    if most is not None and len(words) > most:
        words = [*words[:most], f"{len(words) - most} more"]
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def one_line(text: str) -> str:
    """Text whose control characters are written as \\n, \\x1b and the like: a file's name may hold any, and on a
    terminal none should act."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e]", lambda c: c[0].encode("unicode_escape").decode(), text)


# ---- texts from templates


def escape(text: Any) -> Markup:
    """Any text as Markdown that shows just that text, on one line."""
    from markupsafe import Markup

    if isinstance(text, Markup):
        return text
    if isinstance(text, (int, float)):
        return Markup(text)
    flat = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    flat = re.sub(r"([\\`*_{}\[\]<>#|~^$@&!])", r"\\\1", flat)
    return Markup(re.sub(r"^([-+:%=]|\d+(?=[.)]))", lambda m: m[1] + "\\" if m[1].isdigit() else "\\" + m[1], flat))


def environment(*folders: Path, **options: Any) -> Environment:
    """Jinja as all our templates know it: words and numbers are filters; what is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(folders),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    made.filters |= {write.__name__: write for write in (percent, number, interval, p_value, amount, counted, listed)}
    made.globals |= {"evidence": Evidence, "pointer": pointer, "strength": strength}
    return made


def written(template: Path, **values: Any) -> str:
    """The plain text that a template (.txt) writes."""
    return environment(template.parent).get_template(template.name).render(values)


def sentences_from(template: Path, facts: Mapping[str, Any], **values: Any) -> list[Sentence]:
    """The sentences on `facts` that a plain template writes: `{% call say(key, evidence) %}text{% endcall %}`.

    `key` leads to the fact. The evidence is `evidence(…)`, or its kind alone ("measured"): then the fact's figures, and
    those that are named beside it, are the evidence. A sentence stands under the last `topic(…)`, on one line; an empty
    text is no sentence.
    """
    found: list[Sentence] = []
    topics = [""]

    def topic(name: str) -> str:
        topics.append(name)
        return ""

    def say(key: str = "", evidence: Evidence | str = Evidence(), *, caller: Callable[[], str], **figures: Any) -> str:
        if text := re.sub(r"\s*\n\s*", " ", caller().strip()):
            if isinstance(evidence, str):
                evidence = about(facts, key, text, evidence, **figures).evidence
            found.append(Sentence(text, evidence, key, topics[-1]))
        return ""

    written(template, facts=facts, say=say, topic=topic, **values)
    return found
