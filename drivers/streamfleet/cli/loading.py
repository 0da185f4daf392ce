"""``module:object`` becomes a worker."""

from __future__ import annotations

import os
import sys
import traceback
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import cast

from streamfleet.cli.serving import AnyWorker, shell_of
from streamfleet_core.errors import StreamfleetError, UsageError


def load_worker(target: str) -> AnyWorker:
    """The worker that ``module:object`` names, or that the callable named so gives when called.

    Modules are found from the current directory, too. Raises UsageError, which says what was there instead.
    """
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        raise UsageError(f"expected module:object, for instance app:worker, got {target!r}")
    found = _attribute(_module(module_name), path)
    worker = _worker(found)
    if worker is not None:
        return worker
    if not callable(found) or isinstance(found, type):
        raise UsageError(f"{target} is {_described(found)}: name a Worker, or a function that returns one")
    try:
        made = found()
    except StreamfleetError:
        raise
    except Exception as error:
        raise UsageError(f"{target}() failed: {_where(error)}") from error
    worker = _worker(made)
    if worker is None:
        raise UsageError(f"{target}() returned something {_described(made)}, not a Worker")
    return worker


def _worker(value: object) -> AnyWorker | None:
    return cast("AnyWorker", value) if shell_of(value) else None


def _module(name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except StreamfleetError:
        raise  # the user's settings are at fault, and the message says which
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(
                f"there is no module {error.name!r} here ({here}) or among the installed ones"
            ) from error
        raise UsageError(f"importing {name} failed: {_where(error)}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"importing {name} failed: {_where(error)}") from error


def _attribute(module: ModuleType, path: str) -> object:
    found: object = module
    for name in path.split("."):
        if not hasattr(found, name):
            raise UsageError(f"{module.__name__} has no {path!r}{_instead(module, path)}")
        found = getattr(found, name)
    return found


def _instead(module: ModuleType, path: str) -> str:
    workers = [name for name, value in vars(module).items() if shell_of(value)]
    if workers:
        return f"; its workers: {', '.join(workers)}"
    close = get_close_matches(path, vars(module), n=1)
    return f"; did you mean {close[0]!r}?" if close else ", and no worker under any other name"


def _described(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    return f"of type {type(value).__qualname__}"


def _where(error: BaseException) -> str:
    """The error in one line, with the place in the user's code that raised it."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):  # its text names the place
        return text
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else text
