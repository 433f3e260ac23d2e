"""What holds where a request says nothing: the command line's sampling options and the model's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_server.config import Config
from mlx_server.core import GenerationRequest, Grammar, TextOptions
from mlx_server.errors import ModelLoadError
from mlx_server.sampling_params import DRY_BREAKERS

UNTIL_FULL = -2
"""The `--n-predict` with which replies end where the context does."""

LARGEST_BIAS = 1e9
"""What `+inf` means: the token always comes, and its probability can still be told."""

_BIAS = re.compile(r"(\d{1,10})([+-].+)")

_FIELDS = {
    "max_tokens": "max_tokens",
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical": "typical_p",
    "tfs": "tfs_z",
    "top_n_sigma": "top_n_sigma",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "dry_multiplier": "dry_multiplier",
    "dry_base": "dry_base",
    "dry_allowed_length": "dry_allowed_length",
    "dry_penalty_last_n": "dry_penalty_last_n",
    "dynatemp_range": "dynatemp_range",
    "dynatemp_exp": "dynatemp_exponent",
    "mirostat": "mirostat",
    "mirostat_lr": "mirostat_eta",
    "mirostat_ent": "mirostat_tau",
    "samplers": "samplers",
}
"""Config field → SamplingParams field."""


@dataclass(frozen=True)
class Defaults:
    """
    Args:
        model: Sampling fields of the model's generation_config.json.
        flags: And of the command line, which come first.
        text: Those of the command line that are text.
        grammar: The command line's.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    text: TextOptions = field(default_factory=TextOptions)
    grammar: Grammar | None = None

    @classmethod
    def of(cls, config: Config) -> Defaults:
        """Raises ModelLoadError: an option does not parse; it is named."""
        return cls({}, _flags(config), _text(config), _grammar(config))

    def options(self, request: GenerationRequest) -> dict[str, Any]:
        """The sampling fields of a request."""
        model = {} if request.own_defaults else self.model
        flags = dict(self.flags)
        if "max_tokens" in request.options:  # then the flag's limit is gone, and where it ends
            flags.pop("n_keep", None)
        return {**request.defaults, **model, **flags, **request.options}

    def text_options(self, request: GenerationRequest) -> TextOptions:
        """The request's options that are text, with nothing left open."""
        given = request.text_options
        if given.dry_breakers is None:
            breakers = self.text.dry_breakers
            given = replace(given, dry_breakers=DRY_BREAKERS if breakers is None else breakers)
        if given.penalize_nl is None:
            given = replace(given, penalize_nl=self.text.penalize_nl is not False)
        return given


def _flags(config: Config) -> dict[str, Any]:
    values = {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    flags = {name: value for name, value in values.items() if value is not None}
    if config.max_tokens == UNTIL_FULL:
        flags |= {"max_tokens": None, "n_keep": None}
    if config.repeat_last_n is not None:
        flags["repetition_context_size"] = config.repeat_last_n
        flags["penalty_context_size"] = config.repeat_last_n
    if config.seed is not None and config.seed >= 0:
        flags["seed"] = config.seed
    if config.ignore_eos:
        flags["ignore_eos"] = True
    if config.logit_bias:
        flags["logit_bias"] = tuple(_bias(text) for text in config.logit_bias)
    return flags


def _bias(text: str) -> tuple[int, float]:
    match = _BIAS.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        return int(match[1]), min(float(match[2]), LARGEST_BIAS)
    except ValueError:
        raise ModelLoadError(
            f"--logit-bias {text!r}: expected a token id and a bias, as in 15043+1 or 15043-1."
        ) from None


def _text(config: Config) -> TextOptions:
    breakers: tuple[str, ...] | None = config.dry_sequence_breaker or None
    if breakers is not None and "none" in breakers:
        breakers = ()
    return TextOptions(dry_breakers=breakers, penalize_nl=config.penalize_nl)


def _grammar(config: Config) -> Grammar | None:
    if config.json_schema:
        return Grammar("json_schema", config.json_schema, "--json-schema")
    if config.grammar:
        return Grammar("gbnf", config.grammar, "--grammar")
    return None
