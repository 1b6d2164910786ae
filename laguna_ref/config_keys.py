"""Reading keys of config.json one by one, so that none is missed and none is guessed."""

from __future__ import annotations

from typing import Any

from laguna_ref.errors import ConfigError, UnknownConfigKeyError

UNUSED_KEYS = {
    "architectures": "model_type decides",
    "auto_map": "remote code is never run",
    "transformers_version": "of the tool that wrote the config",
    "_name_or_path": "where the config came from",
    "attention_dropout": "training only",
    "router_aux_loss_coef": "training only",
    "initializer_range": "training only",
    "output_router_logits": "a Recorder gives them",
    "output_attentions": "a Recorder gives them",
    "output_hidden_states": "a Recorder gives them",
    "return_dict": "an option of Transformers' interface",
    "use_cache": "the caller passes a cache or none",
    "load_balance_coeff": "training only",
    "use_grouped_mm": "training only",
    "is_encoder_decoder": "a default written by Transformers",
    "chunk_size_feed_forward": "a default written by Transformers",
    "id2label": "a default written by Transformers",
    "label2id": "a default written by Transformers",
    "problem_type": "a default written by Transformers",
    "cls_token_id": "the tokenizer's business",
    "sep_token_id": "the tokenizer's business",
    "unk_token_id": "the tokenizer's business",
    "mask_token_id": "the tokenizer's business",
}
"""Known keys without effect on the forward pass, each with the reason."""

FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "model_type": ("laguna",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "qkv_bias": (False,),
    "use_bidirectional_attention": (False, None),
    "moe_apply_router_weight_on_input": (False,),
    "swa_attention_sink_enabled": (False,),
    "rope_style": ("rotate-half",),
}
"""Keys of which only one value is implemented; others are refused, never ignored."""


class ConfigReader:
    """Hands out the values of a config, remembering which keys were asked for."""

    def __init__(self, raw: dict[str, Any], source: str, ignore_keys: tuple[str, ...]) -> None:
        self.raw = raw
        self.source = source
        self.ignore_keys = ignore_keys
        self.defaults: list[tuple[str, Any, str]] = []
        self.unused = [(key, why) for key, why in UNUSED_KEYS.items() if key in raw]
        self._asked = set(UNUSED_KEYS) | set(FIXED_KEYS)

    def error(self, key: str, message: str, expected: Any = None, found: Any = None) -> ConfigError:
        """A ConfigError about one key."""
        return ConfigError(message, file=self.source, key=key, expected=expected, found=found)

    def get(self, key: str) -> Any:
        """The value of a key that may be absent."""
        self._asked.add(key)
        return self.raw.get(key)

    def note_unused(self, key: str, reason: str) -> None:
        """Lists a key, if present, as known and without effect."""
        self._asked.add(key)
        if key in self.raw:
            self.unused.append((key, reason))

    def take_default(self, key: str, value: Any, origin: str) -> Any:
        """Lists and returns the value that an absent key comes to."""
        self.defaults.append((key, value, origin))
        return value

    def refuse_unsupported(self) -> None:
        """Raises for a key whose value asks for something not implemented."""
        for key, allowed in FIXED_KEYS.items():
            if key not in self.raw:
                continue
            value = self.raw[key]
            if not any(type(value) is type(good) and value == good for good in allowed):
                raise self.error(key, "not supported", " or ".join(map(repr, allowed)), value)

    def refuse_unknown(self) -> tuple[tuple[str, Any], ...]:
        """Raises for the first key never asked for; returns those the caller chose to ignore."""
        unknown = [key for key in self.raw if key not in self._asked]
        for key in unknown:
            if key not in self.ignore_keys:
                raise UnknownConfigKeyError(
                    f"unknown key (if it is harmless, pass --ignore-config-key {key}, "
                    f"or ignore_config_keys=[{key!r}] in Python)",
                    file=self.source,
                    key=key,
                    found=self.raw[key],
                )
        return tuple((key, self.raw[key]) for key in unknown)

    def positive_int(
        self, key: str, default: int | None = None, *, maximum: int = 2**31 - 1
    ) -> int:
        """A required (or defaulted) integer above zero."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 < value <= maximum:
            found = "nothing" if value is None else value
            raise self.error(key, "wrong value", f"an integer from 1 to {maximum}", found)
        return value

    def size_if(self, needed: bool, key: str, why_not: str, *, maximum: int = 2**31 - 1) -> int:
        """A positive integer that only some configs need; 0 where this one does not."""
        if needed:
            return self.positive_int(key, maximum=maximum)
        self.note_unused(key, why_not)
        return 0

    def number(
        self,
        key: str,
        default: float | None = None,
        origin: str = "",
        *,
        minimum: float = -1e38,
    ) -> float:
        """A finite number."""
        value = self.get(key)
        if value is None and default is not None:
            value = self.take_default(key, default, origin)
        if type(value) not in (int, float) or not minimum <= value <= 1e38:
            raise self.error(
                key, "wrong value", "a finite number", "nothing" if value is None else value
            )
        return float(value)

    def boolean(self, key: str, default: bool, origin: str) -> bool:
        """True or false."""
        value = self.get(key)
        if value is None:
            value = self.take_default(key, default, origin)
        if type(value) is not bool:
            raise self.error(key, "wrong value", "true or false", value)
        return value

    def choice(self, key: str, allowed: tuple[str, ...], default: str, origin: str) -> str:
        """One of some words."""
        value = self.get(key)
        if value is None:
            value = self.take_default(key, default, origin)
        if value not in allowed:
            raise self.error(key, "wrong value", " or ".join(allowed), value)
        return str(value)

    def layer_list(
        self,
        key: str,
        count: int,
        allowed: tuple[str, ...],
        default: str | None,
        origin: str,
        default_list: tuple[str, ...] = (),
    ) -> tuple[str, ...]:
        """A list of one word per layer."""
        value = self.get(key)
        if value is None:
            filled = default_list if default is None else (default,) * count
            return tuple(self.take_default(key, filled, origin))
        if not isinstance(value, list) or len(value) != count:
            found = f"{len(value)} entries" if isinstance(value, list) else value
            raise self.error(key, "wrong length", f"{count} entries, one a layer", found)
        for index, word in enumerate(value):
            if word not in allowed:
                raise self.error(f"{key}[{index}]", "wrong value", " or ".join(allowed), word)
        return tuple(value)

    def token_id(self, key: str) -> int | None:
        """A token id or None."""
        value = self.get(key)
        if value is not None and (type(value) is not int or value < 0):
            raise self.error(key, "wrong value", "a token id or null", value)
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """Token ids given singly, as a list or not at all."""
        value = self.get(key)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(token) is not int or token < 0 for token in listed):
            raise self.error(key, "wrong value", "a token id, a list of them or null", value)
        return tuple(listed)
