"""The command line of every command, and how it ends.

::

    COMMAND = Command(__doc__)
    _OUT = COMMAND.DEFINE_string("out", None, "Folder of the page.", required=True)

    def main(arguments: list[str]) -> int: ...

    if __name__ == "__main__":
        sys.exit(COMMAND.run(main, sys.argv))

A command imports JAX, TensorFlow and what needs them in its functions: ``--help`` takes a moment.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import os
import pathlib
import re
import shlex
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Self

from absl import flags

from scripts import choices

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, TaskID

STOPPED: Final = 130  # exit status after Ctrl-C

_HELP: Final = frozenset({"-h", "--help"})
_COLUMN: Final = 26  # characters of the names of flags in the help
_WIDTH: Final = 100
# what absl adds to the text of a flag: values of an enum, a note about several values
_ABSL: Final = re.compile(r"^<.*?>: |;\s+repeat this option to specify a list of values$")
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_CHATTY: Final = ("absl", "jax", "orbax")  # loggers of which only warnings are shown
# Exceptions of Orbax's threads, raised to us as well; and Beam has no client for BigQuery.
_NO_NEWS: Final = ("_SignalingThread.run() raised an exception", "apitools not found")


class UsageError(Exception):
    """A command line that a command cannot use; the message says why."""


class PlaceError(UsageError):
    """A place in a store that a command does not serve."""


class Command:
    """The flags of one command, kept apart from those of every other module, and how it runs.

    ``DEFINE_string`` and its like are absl's; a positional argument meets ``required`` too.

    Args:
        doc: docstring of the command's module; ``--help`` prints it above the flags.
        positional: flags that positional arguments set, in this order.
        rows: flag -> table of `choices` that its value names rows of. Unknown names are refused
            with the closest ones, and ``--list`` prints the tables.
        more: the command takes further positional arguments.
        in_buckets: flags, or fields of the config, that may lie in a bucket; others are refused.
        status: exit status after an error; after a place that is refused it is 2.
    """

    def __init__(
        self,
        doc: str | None,
        *,
        positional: Sequence[str] = (),
        rows: Mapping[str, str] | None = None,
        more: bool = False,
        in_buckets: Sequence[str] = (),
        status: int = 1,
    ) -> None:
        if TYPE_CHECKING:  # `__getattr__` gives them, with the types of absl
            self.DEFINE_bool = flags.DEFINE_bool
            self.DEFINE_enum = flags.DEFINE_enum
            self.DEFINE_float = flags.DEFINE_float
            self.DEFINE_integer = flags.DEFINE_integer
            self.DEFINE_list = flags.DEFINE_list
            self.DEFINE_multi_string = flags.DEFINE_multi_string
            self.DEFINE_string = flags.DEFINE_string
        self.doc = (doc or "").strip()
        self.flags = flags.FlagValues()
        self.positional = positional
        self._more = more
        self._in_buckets = in_buckets
        self._status = status
        self._required: list[str] = []
        self._aliases: dict[str, str] = {}  # other spelling -> flag
        self._argv: tuple[str, ...] = ()
        self._rows: dict[str, str] = {}
        for flag, table in (rows or {}).items():
            self._choose_from(flag, table)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("DEFINE_"):
            raise AttributeError(name)
        define = getattr(flags, name)

        def define_here(flag: str, *args: Any, required: bool = False, **kwargs: Any) -> Any:
            if required:
                self._required.append(flag)
            return define(flag, *args, flag_values=self.flags, **kwargs)

        return define_here

    def DEFINE_alias(self, name: str, flag: str) -> None:  # noqa: N802  # beside absl's names
        """Defines another spelling of a flag."""
        self._aliases[name] = flag
        flags.DEFINE_alias(name, flag, flag_values=self.flags)

    def DEFINE_config(self, name: str, text: str) -> flags.FlagHolder[Any]:  # noqa: N802
        """Defines the flag of a config file, whose fields are ``--NAME.field``."""
        from ml_collections import config_flags

        self._required.append(name)
        self._choose_from(name, "configs")
        return config_flags.DEFINE_config_file(
            name, None, text, flag_values=self.flags, lock_config=True
        )

    def _choose_from(self, flag: str, table: str) -> None:
        self._rows[flag] = table
        if "list" not in self.flags:
            self.DEFINE_bool("list", False, "Print what to choose from, and end.")

    def fields_set(self, name: str) -> frozenset[str]:
        """Returns the fields of a config that the command line sets, as ``model.depth``."""
        from ml_collections import config_flags

        return frozenset(config_flags.get_override_values(self.flags[name]))

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Flags, each with its other spellings."""
        return {
            name: tuple(alias for alias, flag in self._aliases.items() if flag == name)
            for name in self.flags
            if name not in self._aliases
        }

    @property
    def line(self) -> str:
        """The command line as it was given, for what records how something was made."""
        name = pathlib.Path(self._argv[0]).stem
        return shlex.join(["python", "-m", f"scripts.{name}", *self._argv[1:]])

    def help(self) -> str:
        """Returns the docstring and a line or more for each flag."""
        # a line that the source continues with a backslash is one line here
        lines = [re.sub(r"(?<=\S) {4,}", "\n    ", self.doc), "", "Flags:"]
        for name, aliases in self.names.items():
            flag = self.flags[name]
            text = [_ABSL.sub("", flag.help or "")]
            if flag.default and (flag.boolean or hasattr(flag.parser, "enum_values")):
                text.append(f"Default: {'yes' if flag.boolean else flag.default}.")
            text += ["May be given several times."] if isinstance(flag, flags.MultiFlag) else []
            text += ["Needed."] if name in self._required else []
            if name in self.positional:
                text.append(f"Also argument {self.positional.index(name) + 1}.")
            text += [f"Also {', '.join(f'--{alias}' for alias in aliases)}."] if aliases else []
            head = f"  {_written(flag)}"
            if len(head) >= _COLUMN:
                lines.append(head)
                head = ""
            lines += textwrap.wrap(
                " ".join(text),
                _WIDTH,
                initial_indent=head.ljust(_COLUMN),
                subsequent_indent=" " * _COLUMN,
                break_on_hyphens=False,
            )
        return "\n".join(lines)

    def parse(self, argv: Sequence[str]) -> list[str]:
        """Sets the flags; returns the positional arguments that set none.

        Raises:
            UsageError: the command line is wrong; the message says where.
        """
        self._argv = tuple(argv)
        self._check_config(argv)
        for name in self.flags:
            self.flags[name].unparse()  # a test may run a command twice
        try:
            _, *arguments = self.flags(list(argv))
        except flags.Error as error:
            raise UsageError(_said(str(error))) from error
        except (AttributeError, KeyError, TypeError) as error:
            raise UsageError(_field_problem(argv, error)) from error
        for name, value in zip(self.positional, arguments, strict=False):
            self.flags[name].parse(value)
        arguments = arguments[len(self.positional) :]
        if arguments and not self._more:
            raise UsageError(f"unexpected arguments: {' '.join(arguments)}")
        values = {f"--{name}": self.flags[name].value for name in self.names}
        # behind -- stand options of other programs
        values[choices.ARGUMENT] = [text for text in arguments if not text.startswith("--")]
        for problem in choices.bucket_problems(values, self._in_buckets):
            raise PlaceError(problem)
        for problem in choices.number_problems(values):
            raise UsageError(problem)
        if missing := [f"--{name}" for name in self._required if self.flags[name].value is None]:
            raise UsageError(f"{' and '.join(missing)} must be given")
        for name, table in self._rows.items():
            for problem in choices.problems(table, self.flags[name].value):
                raise UsageError(f"--{name}: {problem}; --list prints all")
        return arguments

    def run(self, main: Callable[[list[str]], int], argv: Sequence[str]) -> int:
        """Returns the exit status of a command line, argv[0] included.

        Files, disks and connections that fail, Ctrl-C and wrong usage end in one line. ``main``
        takes the arguments that `parse` returns and catches the errors of its own subject.
        """
        if sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)
        # TensorFlow and JAX print notes about the machine at each start otherwise, of which this
        # level does not silence that about oneDNN; TensorFlow only reads data here.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        try:
            if _HELP.intersection(argv[1:]):
                return _print(self.help())
            if self._rows and "--list" in argv[1:]:
                return _print("\n\n".join(map(choices.text, dict.fromkeys(self._rows.values()))))
            return main(self.parse(argv)) or 0
        except UsageError as error:
            name = pathlib.Path(argv[0]).stem
            print(f"error: {error}\nsee python -m scripts.{name} --help", file=sys.stderr)
            return 2 if isinstance(error, PlaceError) else self._status
        except OSError as error:
            print(f"error: {message(error)}", file=sys.stderr)
            return self._status
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return STOPPED

    def _check_config(self, argv: Sequence[str]) -> None:
        """Refuses a config that is no file, with a list of those there are."""
        for name in (flag for flag, table in self._rows.items() if table == "configs"):
            prefix = f"--{name}"
            values = [text.partition("=")[2] for text in argv if text.startswith(f"{prefix}=")]
            values += [after for text, after in _pairs(argv) if text == prefix]
            for value in values or [""]:
                file = value.partition(":")[0]  # behind a colon stands an argument of get_config
                if not pathlib.Path(file).is_file():
                    problem = f"{file!r} is no file" if file else "a config file must be given"
                    raise UsageError(f"--{name}: {problem}. There are\n{choices.text('configs')}")


def _print(text: str) -> int:
    """Prints a text; a reader that has seen enough of it, such as head, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
    return 0


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Arguments with the one that follows; a flag is no value."""
    for text, after in zip(argv, [*argv[1:], ""], strict=True):
        yield text, "" if after.startswith("-") else after


def _written(flag: flags.Flag) -> str:
    """Returns a flag with its default or its values, as it is written on a command line."""
    if flag.boolean:
        return f"--{'[no]' if flag.default else ''}{flag.name}"
    if values := getattr(flag.parser, "enum_values", None):
        return f"--{flag.name}={'|'.join(values)}"
    default = ",".join(map(str, flag.default)) if isinstance(flag.default, list) else flag.default
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    return f"--{flag.name}" if default in (None, "") else f"--{flag.name}={default}"


def _said(text: str) -> str:
    """Returns the message of an error; of a config's own error the last line of its traceback."""
    if "Traceback (most recent call last)" not in text:
        return text
    last = text.rstrip().splitlines()[-1]
    return last.partition("Error: ")[2] or last


def _field_problem(argv: Sequence[str], error: Exception) -> str:
    """Returns the line for a config field that is not there; raises an error of another kind."""
    fields = [text for text in argv if text.startswith("--config.")]
    meant = [t for t in fields if any(p in str(error) for p in t.split("=")[0].split(".")[1:])]
    if not meant:
        raise error
    return (
        f"{' '.join(meant)}: the config has no such field ({error}). "
        "configs/base.py lists the fields; the action space of a checkpoint is set by "
        "config.action_mode and config.real_action_dim"
    )


def message(error: BaseException) -> str:
    """Returns an error as the one line that a command ends with."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    advice = "; free some space, or choose another place" if error.errno in _FULL else ""
    return f"{where}{error.strerror}{advice}"


@contextlib.contextmanager
def handled(catch: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handles SIGTERM and SIGINT by ``catch`` within the block."""
    before = {number: signal.signal(number, catch) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Termination(contextlib.ExitStack):
    """Turns SIGTERM into SystemExit, so that incomplete output is removed. A context manager.

    Python drops what is raised in a callback of its garbage collector, and JAX has such a callback:
    a SIGTERM or a Ctrl-C that came there is raised again at the next `check`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._caught: int | None = None

    def __enter__(self) -> Self:
        self.enter_context(handled(self._catch))
        return self

    def check(self) -> None:
        """Raises SystemExit (143, as in shells) or KeyboardInterrupt if its signal has come."""
        if self._caught == signal.SIGTERM:
            sys.exit(143)
        if self._caught == signal.SIGINT:
            raise KeyboardInterrupt

    def checked(self, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """Returns ``progress`` with a `check` before every call."""

        def check_and_show(done: int, total: int) -> None:
            self.check()
            progress(done, total)

        return check_and_show

    def _catch(self, number: int, _: FrameType | None) -> None:
        self._caught = number
        self.check()


def quiet_libraries() -> None:
    """Lets warnings and errors of chatty libraries through, nothing else.

    An exception in Orbax's threads is raised to us as well, so its log and print are left out.
    """
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for handler in (*logging.getLogger().handlers, *logging.getLogger("absl").handlers):
        handler.addFilter(_is_news)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning, "sys")
    sys.unraisablehook = _report


def _is_news(record: logging.LogRecord) -> bool:
    """Returns False for what is no news: exceptions of Orbax's threads are raised as well.

    When one write of several fails, the others are left behind, and asyncio logs each of them.
    """
    text = record.getMessage()
    if record.name == "asyncio" or (record.name == "absl" and record.exc_info):
        return "/orbax/" not in text + record.pathname
    return not any(part in text for part in _NO_NEWS)


def _report(unraisable: sys.UnraisableHookArgs) -> None:
    """Prints as Python does, but not writes of Orbax that end after their event loop."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def episode_progress(
    console: Console, description: str, total: int
) -> Iterator[Callable[[int, int, int], None]]:
    """Shows a bar; yields a function of (episodes done, episodes in all, successes so far)."""
    from rich.progress import MofNCompleteColumn, TextColumn

    rate = TextColumn("{task.fields[rate]}")
    with _bar(console, description, MofNCompleteColumn(), rate) as (progress, bar):

        def show(done: int, total: int, successes: int) -> None:
            speed = progress.tasks[bar].speed
            rate = "" if speed is None else f"{60 * speed:.0f}/min"
            text = f"{done - successes} failed  {rate}"
            progress.update(bar, completed=done, total=total, rate=text)

        progress.update(bar, total=total)
        yield show


@contextlib.contextmanager
def count_progress(console: Console, description: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar that counts; yields a function of (done, in all)."""
    from rich.progress import MofNCompleteColumn

    with _bar(console, description, MofNCompleteColumn()) as (progress, bar):
        yield lambda done, total: progress.update(bar, completed=done, total=total)


@contextlib.contextmanager
def bytes_progress(console: Console, description: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar that counts bytes; yields a function of (done, in all)."""
    from rich.progress import DownloadColumn, TransferSpeedColumn

    with _bar(console, description, DownloadColumn(), TransferSpeedColumn()) as (progress, bar):
        yield lambda done, total: progress.update(bar, completed=done, total=total)


@contextlib.contextmanager
def _bar(
    console: Console, description: str, *counts: ProgressColumn
) -> Iterator[tuple[Progress, TaskID]]:
    # rich is imported here because it takes as long as everything else of --help
    from rich import progress

    before = (progress.TextColumn("{task.description}"), progress.BarColumn())
    after = (progress.TimeElapsedColumn(), progress.TimeRemainingColumn())
    with progress.Progress(*before, *counts, *after, console=console) as shown:
        yield shown, shown.add_task(description, total=None, rate="")
