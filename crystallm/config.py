"""Configs: frozen, nested dataclasses filled from YAML files and `key=value` arguments.

Every value is read by the type of its field, so `compile=False` is False and `out=none` is None. YAML scalars are
taken as text first, for the same reason: one rule for the file and for the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from crystallm.resources import own_file

T = TypeVar("T")
TRUE, FALSE, NONE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}, {"none", "null", "~", ""}


class ConfigError(ValueError):
    """A config that cannot be read; the message names the key, the value and what was wanted."""


def load_config(cls: type[T], argv: Sequence[str] | None = None) -> T:
    """Build `cls` from arguments: paths of YAML files and `key=value`; later ones win, `key=value` over any file."""
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(f"arguments: [file.yaml ...] [key=value ...]; the keys and their defaults:\n\n{describe(cls)}")
        raise SystemExit(0)
    tree: dict[str, Any] = {}
    for path in (a for a in argv if "=" not in a):
        _merge(tree, _check_keys(cls, read_yaml(path), path))
    for argument in (a for a in argv if "=" in a):
        key, _, text = argument.lstrip("-").partition("=")
        value: Any = text
        for name in reversed(key.split(".")):
            value = {name: value}
        _merge(tree, _check_keys(cls, value, f"argument {argument!r}"))
    return from_dict(cls, tree)


def names_key(argv: Sequence[str] | None, key: str) -> bool:
    """Whether arguments of load_config, or a YAML file among them, name this key at the top."""
    argv = sys.argv[1:] if argv is None else argv
    given = [a.lstrip("-").partition("=")[0].partition(".")[0] for a in argv if "=" in a]
    files = [a for a in argv if "=" not in a and not a.startswith("-")]
    return key in given or any(key in read_yaml(path) for path in files)


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build `cls` from a nested mapping, as YAML or a checkpoint's config holds it. Unknown keys are an error."""
    _check_keys(cls, values, where or cls.__name__)
    hints = typing.get_type_hints(cls)
    arguments = {name: _convert(value, hints[name], f"{where}{name}") for name, value in values.items()}
    missing = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.name not in arguments
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where or cls.__name__}: no value for {', '.join(where + name for name in missing)}")
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except ValueError as err:
        raise ConfigError(f"{where}{err}") from err


def to_dict(config: Any) -> dict[str, Any]:
    """Plain data (dict, list, str, int, float, bool, None) that from_dict reads back to an equal config."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def settings_from(base: T, asked: T, free: Collection[str]) -> tuple[T, list[str]]:
    """`base` with what `asked` sets, where that is `free`; and a line for each setting that is not taken.

    For training that starts from a checkpoint, `base`: what `asked` leaves at its default says nothing.
    """
    taken, notes = {}, []
    for field in dataclasses.fields(base):  # type: ignore[arg-type]
        name = field.name
        value, own = getattr(asked, name), getattr(base, name)
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if value in (own, default):
            continue
        if name in free:
            taken[name] = value
        else:
            notes.append(f"{name}={_plain(value)} is not taken, the checkpoint has {_plain(own)}")
    return dataclasses.replace(base, **taken), notes  # type: ignore[type-var]


def save_config(config: Any, path: str | Path) -> None:
    Path(path).write_text(to_yaml(config), encoding="utf-8")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The file's mapping with every scalar as text."""
    try:
        text = own_file(path).read_text(encoding="utf-8")
    except OSError as err:
        raise ConfigError(f"{path}: cannot read this config ({err.strerror}); options are written key=value") from err
    try:
        tree = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as err:
        raise ConfigError(f"{path}: not YAML: {err}") from err
    if tree is None or tree == "":
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: wanted `key: value` lines, got {type(tree).__name__}")
    return tree


def describe(cls: type, prefix: str = "") -> str:
    """One line a key: name, default, type."""
    hints, lines = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            lines.append(describe(typing.cast(type, hints[field.name]), f"{prefix}{field.name}."))
            continue
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        shown = "(required)" if required else f"= {default}"
        lines.append(f"{prefix}{field.name} {shown}    {_type_name(hints[field.name])}")
    return "\n".join(lines)


def flat_keys(cls: type, prefix: str = "") -> list[str]:
    """Every dotted key of a config class, sections included."""
    hints, keys = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        keys.append(prefix + field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            keys += flat_keys(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")
    return keys


def _check_keys(cls: type, tree: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    def check(mapping: Mapping[str, Any], section: type, prefix: str) -> None:
        hints = typing.get_type_hints(section)
        names = {field.name for field in dataclasses.fields(section)}
        for name, value in mapping.items():
            key = f"{prefix}{name}"
            if name not in names:
                raise ConfigError(f"{source}: no key {key!r}; {_hint(cls, section, key, isinstance(value, Mapping))}")
            if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
                check(value, typing.cast(type, hints[name]), f"{key}.")

    check(tree, cls, "")
    return tree


def _hint(cls: type, section: type, key: str, is_section: bool) -> str:
    """The closest key of the section, or of the whole config; where none is close, those of the section."""
    prefix, dot, _ = key.rpartition(".")
    known = flat_keys(cls)
    sections = {name.rpartition(".")[0] for name in known}
    of_kind = [name for name in known if (name in sections) == is_section]
    inside = [name for name in of_kind if name.startswith(prefix + dot)]
    for candidates, least in ((inside, 0.6), (of_kind, 0.8)):
        closest = max(candidates, key=lambda name: (_likeness(key, name), -len(name)), default=key)
        if candidates and _likeness(key, closest) >= least:
            return f"the closest is {closest!r}"
    names = [
        f"{name}.…" if f"{prefix}{dot}{name}" in sections else name for name in flat_keys(section) if "." not in name
    ]
    return f"{f'the keys of {prefix!r}' if prefix else 'the keys'} are {', '.join(names)}"


def _likeness(key: str, candidate: str) -> float:
    """Of the last names, 1 where they are equal: by letters, by initials (`lr`: learning_rate), by words (`rate`)."""
    name, other = key.rpartition(".")[2], candidate.rpartition(".")[2]
    words, others = name.split("_"), other.split("_")
    if len(others) > 1 and name == "".join(word[:1] for word in others):
        return 1.0
    shared = sum(any(word == one or (len(word) > 2 and one.startswith(word)) for one in others) for word in words)
    return max(difflib.SequenceMatcher(None, name, other).ratio(), 0.9 * shared / len(words))


def _merge(tree: dict[str, Any], update: Mapping[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = dict(value) if isinstance(value, Mapping) else value


def _convert(value: Any, hint: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        if dataclasses.is_dataclass(value):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: got {value!r}, wanted the section's keys, like {key}.name=value")
        return from_dict(typing.cast(type, hint), value, f"{key}.")
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, key)
    if origin is Literal:
        for choice in arguments:
            if value == choice or str(value) == str(choice):
                return choice
        choices = ", ".join(map(str, arguments))
        raise ConfigError(f"{key}: got {str(value)!r}, wanted one of {choices}")
    if origin in (tuple, list) or hint in (tuple, list):
        return _convert_sequence(value, origin or hint, arguments, key)
    if origin is dict or hint is dict:
        if isinstance(value, str):
            value = yaml.load(value, Loader=yaml.BaseLoader)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: got {value!r}, wanted a mapping like {{name: value}}")
        key_hint, value_hint = arguments or (Any, Any)
        return {_convert(k, key_hint, key): _convert(v, value_hint, f"{key}.{k}") for k, v in value.items()}
    return _convert_scalar(value, hint, key)


def _convert_union(value: Any, arguments: tuple[Any, ...], key: str) -> Any:
    if type(None) in arguments and (value is None or (isinstance(value, str) and value.lower() in NONE)):
        return None
    errors = []
    for argument in (a for a in arguments if a is not type(None)):
        try:
            return _convert(value, argument, key)
        except ConfigError as err:
            errors.append(str(err))
    raise ConfigError(errors[0] if len(errors) == 1 else " / ".join(errors))


def _convert_sequence(value: Any, origin: type, arguments: tuple[Any, ...], key: str) -> Any:
    if isinstance(value, str):  # "1, 2" as well as "[1, 2]"
        text = value.strip()
        value = yaml.load(text if text.startswith("[") else f"[{text}]", Loader=yaml.BaseLoader)
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{key}: got {value!r}, wanted a list like [a, b]")
    if origin is list or (len(arguments) == 2 and arguments[1] is Ellipsis) or not arguments:
        hints = [arguments[0] if arguments else Any] * len(value)
    else:
        hints = list(arguments)
    if len(hints) != len(value):
        raise ConfigError(f"{key}: got {len(value)} values {value!r}, wanted {len(hints)}")
    return origin(_convert(v, hint, f"{key}[{i}]") for i, (v, hint) in enumerate(zip(value, hints, strict=True)))


def _convert_scalar(value: Any, hint: Any, key: str) -> Any:
    wanted = _type_name(hint)
    if isinstance(value, (Mapping, list, tuple)):
        raise ConfigError(f"{key}: got {value!r}, wanted {wanted}")
    text = str(value).strip()
    if hint is bool:
        if text.lower() in TRUE | FALSE:
            return text.lower() in TRUE
        raise ConfigError(f"{key}: got {text!r}, wanted bool (true or false)")
    if hint is str:
        return text if isinstance(value, str) else str(value)
    try:
        if hint is int:
            number = float(text) if not text.lstrip("+-").replace("_", "").isdigit() else int(text)
            if number != int(number):
                raise ValueError
            return int(number)
        return hint(text)
    except (ValueError, TypeError, OverflowError) as err:
        raise ConfigError(f"{key}: got {text!r}, wanted {wanted}") from err


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
