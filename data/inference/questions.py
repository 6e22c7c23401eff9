"""The table of questions, in the order in which they are asked, and `infer`, which asks them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from data.inference.cameras import arm_order, channel_order, two_arms, views
from data.inference.choices import Choice, Choices, Question, answered, open_choice, stated
from data.inference.columns import JOINTS, POSES, arms, channels, kind, state_key
from data.inference.grippers import NONE, closed_ends, grippers
from data.inference.motion import rate, targets, unit
from data.inference.recording import Recording
from data.inference.rotations import position_unit, rotation

Ask = Callable[[Question, Choice], str]  # the answer; empty: it stays open


def _joints(_: Recording, choices: Choices) -> bool:
    return choices["kind"].value == JOINTS


def _poses(_: Recording, choices: Choices) -> bool:
    return choices["kind"].value == POSES


def _has_gripper(_: Recording, choices: Choices) -> bool:
    return choices["grippers"].value != NONE


def _text(recording: Recording, _: Choices) -> Choice:
    empty = sum(not text.strip() for text in recording.texts)
    count = len(recording.texts)
    sentence = "a sentence for every episode, as: pick up the cube"
    if count and not empty:
        shown = next(iter(recording.texts))[:60]
        several = len(set(recording.texts))
        place = f" in {recording.text_key}" if recording.text_key else ""
        text = f"{count} episodes have {several} texts{place}, as {shown!r}"
        return stated("recorded", text, "recorded", sentence, free=True)
    return open_choice(f"{empty} of {count} episodes have no text", sentence, free=True)


QUESTIONS: tuple[Question, ...] = (
    Question("state_key", "Which array is the state of the robot?", state_key),
    Question("kind", "Is the robot driven by joints or by poses of its hand?", kind,
             needs=("state_key",)),
    Question("channels", "Which columns are joints and grippers?", channels, _joints, ("kind",)),
    Question("arms", "Where are positions and rotations?", arms, _poses, ("kind",)),
    Question("arm_order", "Which arm stands first in the array?", arm_order, two_arms,
             ("kind", "channels", "arms")),
    Question("grippers", "Which columns are grippers?", grippers,
             needs=("kind", "channels", "arms", "arm_order")),
    Question("gripper_closed", "At which end of its readings is each gripper closed?", closed_ends,
             _has_gripper, ("grippers",)),
    Question("unit", "In which unit are the joints?", unit, _joints, ("grippers",)),
    Question("targets", "Are the targets the recorded actions, or later states?", targets, _joints,
             ("grippers",)),
    Question("position_unit", "In which unit are the positions?", position_unit, _poses, ("arms",)),
    Question("rotation", "How is the rotation written?", rotation, _poses, ("arms",)),
    Question("views", "Which cameras, the main one first?", views),
    Question("channel_order", "In which order are the colours of the images?", channel_order),
    Question("rate_hz", "How many frames a second?", rate),
    Question("instruction", "What is the instruction?", _text),
)  # fmt: skip


def infer(
    recording: Recording, answers: Mapping[str, str] | None = None, ask: Ask | None = None
) -> dict[str, Choice]:
    """Choices by name, in the order of the questions; what is open could not be decided.

    A question whose evidence needs an open choice is not asked.

    Args:
        recording: some episodes.
        answers: by name of the question; they win over what was measured.
        ask: called for each choice that is open.

    Raises:
        ValueError: an answer to no question, or one that is not allowed.
    """
    given = dict(answers or {})
    unknown = sorted(set(given) - {question.name for question in QUESTIONS})
    if unknown:
        names = ", ".join(question.name for question in QUESTIONS)
        raise ValueError(f"no question is named {', '.join(unknown)}; there are {names}")
    choices: dict[str, Choice] = {}
    skipped: set[str] = set()
    for question in QUESTIONS:
        waits = [n for n in question.needs if n in skipped or (n in choices and choices[n].is_open)]
        if waits:
            skipped.add(question.name)
            continue
        if question.applies is not None and not question.applies(recording, choices):
            continue
        choice = question.judge(recording, choices)
        if question.name in given:
            choice = answered(choice, question.name, given[question.name])
        elif choice.is_open and ask is not None and (answer := ask(question, choice)):
            choice = answered(choice, question.name, answer)
        choices[question.name] = choice
    return choices
