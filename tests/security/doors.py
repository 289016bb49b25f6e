"""Which options and keys take a path, a class or another text: derived from parsers and constructors."""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import os
import pkgutil
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytorch_lightning as pl
from numpy import ndarray
from torch import Tensor

import datamodules
import hardneg
import miners
from hardneg.benchmark.peer import Peer
from hardneg.benchmark.suite import CHAIN_KEYS, KEYS, OVERLAY_KEYS
from hardneg.cli import COMMANDS, LIGHTNING, main
from hardneg.encoders.base import Encoder
from hardneg.lightning_cli import HardnegCLI

PACKAGES = (hardneg, miners, datamodules)
ROOTS = (pl.LightningModule, pl.LightningDataModule, pl.Callback, Encoder, Peer)
"""What YAML, a suite or --encoder names first; the rest is what their constructors take."""
PLAIN = (str, int, float, bool, type(None))
Kind = Literal["nothing", "text", "path", "class"]
PATHS = ("folder", "path", "file", "store", "cache", "checkpoint", "ckpt", "weight", "table", "image", "picture", "out")
"""Parts of a name that speak of files: such an option or key is never a mere text."""


class _Found(BaseException):
    """Carries a parser past ``except Exception``."""


# ---- options ---------------------------------------------------------------------------------------------------------


@cache
def options() -> Mapping[str, Kind]:
    """Options of all commands that take more than a number or one of some words: "hardneg mine --queries"."""
    parts = [_of_lightning(name) if name in LIGHTNING else _of_parser(_parser(name)) for name in COMMANDS]
    return dict(itertools.chain(*parts, _of_parser(_parser("", "hardneg.quickstart"))))


def _parser(command: str, module: str = "") -> argparse.ArgumentParser:
    """The parser that a command would parse with."""

    def found(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _Found(self)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", found):
        try:
            importlib.import_module(module).main([]) if module else main([command])
        except _Found as it:
            return typing.cast(argparse.ArgumentParser, it.args[0])
    raise AssertionError(f"'{command or module}' parses nothing")


def _of_parser(parser: argparse.ArgumentParser) -> Iterator[tuple[str, Kind]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _of_parser(below)
            continue
        name = action.option_strings[-1] if action.option_strings else action.dest.upper()
        if (
            action.nargs == 0
            or action.choices
            or action.type in (int, float)
            or isinstance(action, argparse._HelpAction)
        ):
            continue
        path = action.type is not None and action.type is not str and inspect.isclass(action.type)
        yield f"{parser.prog} {name}", "path" if path or _like_a_path(name) else "text"


class _Parsers(HardnegCLI):
    """Stops when the parsers are made."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise _Found(self._subcommand_parsers)


def _of_lightning(command: str) -> Iterator[tuple[str, Kind]]:
    try:
        _Parsers.start([command])
    except _Found as it:
        parser = it.args[0][command]
    for action in parser._actions:
        if not action.option_strings or isinstance(action, argparse._HelpAction):
            continue
        name = action.option_strings[-1]
        kind = kind_of(getattr(action, "_typehint", action.type or str), name) if action.nargs != 0 else "nothing"
        if name.startswith("--trainer"):  # Lightning's own, which change with its version
            name, kind = "--trainer.*", "class"
        if kind != "nothing":
            yield f"hardneg {command} {name}", kind


# ---- keys of YAML ----------------------------------------------------------------------------------------------------


@cache
def keys() -> Mapping[str, Kind]:
    """Constructor arguments that YAML may give, of all classes that it may name: "RetrievalData.folder"."""
    found: dict[str, Kind] = {}
    for each in reachable():
        function = each if inspect.isfunction(each) else vars(each).get("__init__")
        if not inspect.isfunction(function):
            continue
        hints = _hints(function)
        for parameter in list(inspect.signature(function).parameters.values())[inspect.isclass(each) :]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue  # handed on to the class above, which is reachable itself
            kind = kind_of(hints.get(parameter.name, Any), parameter.name)
            if kind != "nothing":
                found[f"{each.__name__}.{parameter.name}"] = kind
    return found


def suite_keys() -> frozenset[str]:
    """Keys of a suite."""
    return frozenset({f"suite {key}" for key in (*KEYS, *CHAIN_KEYS, *OVERLAY_KEYS)})


@cache
def reachable() -> tuple[Any, ...]:
    """Classes of ours that YAML may name, and functions that return one: the closure over types of arguments."""
    modules = [
        importlib.import_module(found.name)
        for package in PACKAGES
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if found.name != "miners.testing"
    ]
    public = {
        each
        for module in modules
        for name, each in vars(module).items()
        if getattr(each, "__module__", None) == module.__name__ and not name.startswith("_")
    }
    classes = {each for each in public if inspect.isclass(each)}
    made = {each: _classes(_hints(each).get("return")) for each in public if inspect.isfunction(each)}
    found: set[Any] = set()
    wanted = {each for each in classes if issubclass(each, ROOTS)}
    while wanted:
        found |= wanted
        bases = {base for each in wanted if inspect.isclass(each) for base in each.__mro__} & classes
        taken = {kind for each in wanted for kind in _taken(each) if _ours(kind)}
        below = {each for each in classes if issubclass(each, tuple(taken))} | bases
        makers = {each for each, kinds in made.items() if kinds and all(issubclass(kind, ROOTS) for kind in kinds)}
        makers = {each for each in makers if all(kind in PLAIN for kind in _taken(each))}
        wanted = (below | makers) - found
    return tuple(sorted(found, key=lambda each: (each.__module__, each.__name__)))


def _hints(function: Any) -> dict[str, Any]:
    """Types by name; a type that is imported for type checkers alone may be anything."""
    scope = vars(inspect.getmodule(function))
    found = {}
    for name, hint in inspect.get_annotations(inspect.unwrap(function)).items():
        try:
            found[name] = eval(hint, dict(scope)) if isinstance(hint, str) else hint
        except NameError:
            found[name] = Any
    return found


def _taken(each: Any) -> set[type]:
    """Classes among the arguments of a constructor or function."""
    function = each if inspect.isfunction(each) else each.__init__
    if not inspect.isfunction(function):
        return set()
    hints = _hints(function)
    return {kind for name, hint in hints.items() if name != "return" for kind in _classes(hint)}


def _classes(hint: Any) -> set[type]:
    """All classes in a type."""
    if typing.get_origin(hint) is Literal:
        return set()
    found = {hint} if inspect.isclass(hint) and not typing.get_args(hint) else set()
    return found.union(*(_classes(part) for part in typing.get_args(hint) if not isinstance(part, list)))


def _ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] in {package.__name__ for package in PACKAGES}


# ---- types -----------------------------------------------------------------------------------------------------------


def kind_of(hint: Any, name: str) -> Kind:
    """What may be given for a type: a class, a path, another text, or none of these.

    A mapping's keys are names; its values count. What has no type may be anything, which is a class.
    """
    kinds = set(_kinds(hint))
    if "path" in kinds or ("text" in kinds and _like_a_path(name)):
        return "path"
    return next((kind for kind in ("class", "text") if kind in kinds), "nothing")


def _kinds(hint: Any) -> Iterator[Kind]:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in (None, type(None), Ellipsis, int, float, bool, Tensor, ndarray) or origin in (Literal, ndarray):
        return  # no YAML makes a tensor
    if hint is str:
        yield "text"
    elif origin is typing.Annotated:
        yield from _kinds(parts[0])
    elif inspect.isclass(origin) and issubclass(origin, Mapping) and parts:
        yield from _kinds(parts[1])
    elif origin in (typing.Union, types.UnionType) or (inspect.isclass(origin) and origin is not type and parts):
        if origin is os.PathLike:
            yield "path"
        for part in parts:
            yield from _kinds(part)
    elif inspect.isclass(hint) and issubclass(hint, Path | os.PathLike):
        yield "path"
    else:
        yield "class"


def _like_a_path(name: str) -> bool:
    words = name.strip("-").lower().replace("-", "_").split("_")
    return any(word.rstrip("s") in PATHS for word in words)
