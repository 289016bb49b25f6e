"""One function makes what a user names, and checks it before it is called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from hardneg.instantiate import find_class, instantiate


class Base(ABC):
    @abstractmethod
    def work(self) -> int: ...


class Worker(Base):
    def __init__(self, number: int = 1) -> None:
        if number < 0:
            raise ValueError("number must be at least 0")
        self.number = number

    def work(self) -> int:
        return self.number


class Liar(Base):
    def __new__(cls) -> object:  # type: ignore[misc]
        return 7

    def work(self) -> int:
        return 0


def annotated(number: int) -> Worker:
    return Worker(number)


def annotated_otherwise(mark: str) -> Path:
    Path(mark).touch()
    return Path(mark)


def annotated_wrongly(mark: str) -> Nowhere:  # type: ignore[name-defined]  # noqa: F821
    Path(mark).touch()
    return Worker()


def test_classes_and_functions_that_say_what_they_return() -> None:
    assert instantiate(f"{__name__}.Worker", {"number": 3}, Base, "--worker").work() == 3
    assert instantiate(f"{__name__}.annotated", {"number": 4}, Base, "--worker").work() == 4
    assert find_class(f"{__name__}.Worker", Base, "--worker") is Worker


@pytest.mark.parametrize(
    ("path", "arguments", "words"),
    [
        (
            "os.system",
            {"command": "exit 1"},
            r"--worker must be the class path of a .*Base, got 'os.system', which is no",
        ),
        ("builtins.dict", {}, "which is no subclass of it: not called"),
        (f"{__name__}.Base", {}, "which is abstract; name one of its subclasses"),
        (f"{__name__}.annotated_otherwise", {"mark": "x"}, "which is no subclass of it: not called"),
        (f"{__name__}.annotated_wrongly", {"mark": "x"}, "which is no class: not called"),
        (f"{__name__}.Nothing", {}, "which cannot be imported: module .* has no attribute 'Nothing'"),
        ("nowhere.Worker", {}, "which cannot be imported: No module named 'nowhere'"),
        ("Worker", {}, "which is no path of a module and a name in it"),
        (".Worker", {}, "which is no path of a module"),
        ("os.system('exit 1').x", {}, "which is no path of a module"),
        (f"{__name__}.Worker", {"other": 1}, "Worker cannot be made: .*unexpected keyword argument 'other'"),
        (f"{__name__}.Worker", {"number": -1}, "Worker cannot be made: number must be at least 0"),
        (f"{__name__}.Worker", [1], r"the arguments of .*Worker must be a mapping by name, got \[1\]"),
        (f"{__name__}.Liar", {}, "made a int, no .*Base"),
    ],
)
def test_everything_else_is_refused(path: str, arguments: dict, words: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        instantiate(path, arguments, Base, "--worker")
    assert not list(tmp_path.iterdir())  # no function was called
