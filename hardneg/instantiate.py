"""Make an object of a class that the user names; the class is checked before it is called."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def instantiate(class_path: str, init_args: Mapping[str, Any], base: type[T], option: str) -> T:
    """Import a class path, check that it makes a ``base``, and only then call it.

    A module runs its code when it is imported. So ``class_path`` must come from the user's command line, YAML or suite,
    never from a table, a checkpoint or another file of data.

    Args:
        class_path: "package.module.Class", or a function of a module whose annotation says that it returns a ``base``.
        init_args: its keyword arguments.
        base: the class that the object must be an instance of.
        option: where the user wrote the path; errors begin with it.

    Raises:
        ValueError: a path that names no ``base``, or arguments that it does not take.

    Example:
        >>> from collections import OrderedDict
        >>> instantiate("collections.OrderedDict", {"a": 1}, dict, "--kind")
        OrderedDict({'a': 1})
        >>> instantiate("os.system", {"command": "true"}, dict, "--kind")
        Traceback (most recent call last):
        ValueError: --kind must be the class path of a builtins.dict, got 'os.system', which is no class: not called.
    """
    found = find_class(class_path, base, option)
    if not isinstance(init_args, Mapping) or not all(isinstance(name, str) for name in init_args):
        raise ValueError(f"{option}: the arguments of {class_path} must be a mapping by name, got {init_args!r:.60}.")
    try:
        made = found(**init_args)
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        raise ValueError(f"{option} {class_path} cannot be made: {error}") from error
    if not isinstance(made, base):
        raise ValueError(f"{option} {class_path} made a {type(made).__name__}, no {_name(base)}.")
    return made


def find_class(class_path: str, base: type[T], option: str) -> Callable[..., T]:
    """Import what a class path names, and check without calling it that it makes a ``base``.

    Args:
        class_path, base, option: as in `instantiate`.

    Returns:
        A subclass of ``base`` that is not abstract, or a function that is annotated to return one.

    Raises:
        ValueError: nothing of that path, or something else.
    """
    must = f"{option} must be the class path of a {_name(base)}, got {class_path!r}"
    module, _, name = str(class_path).rpartition(".")
    if not module or not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ValueError(f"{must}, which is no path of a module and a name in it.")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{must}, which cannot be imported: {error}.") from error
    kind = _returned(found) if inspect.isfunction(found) else found
    if not isinstance(kind, type):
        raise ValueError(f"{must}, which is no class: not called.")
    if not issubclass(kind, base):
        raise ValueError(f"{must}, which is no subclass of it: not called.")
    if inspect.isabstract(found):
        raise ValueError(f"{must}, which is abstract; name one of its subclasses.")
    return found


def _returned(function: Callable[..., Any]) -> Any:
    """What a function is annotated to return; None where it does not say."""
    try:
        return typing.get_type_hints(function).get("return")
    except (NameError, TypeError, AttributeError):
        return None


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
