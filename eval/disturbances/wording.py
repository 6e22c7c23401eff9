"""Other words for LIBERO's instructions, which name the same objects and places.

Level 1 has other verbs, level 2 makes a question of it, level 3 buries it in a longer sentence.
"""

from __future__ import annotations

import re

_VERBS = {
    "pick up": "grab",
    "pick": "grab",
    "put": "set",
    "place": "set",
    "open": "pull open",
    "close": "shut",
    "push": "slide",
    "stack": "pile",
    "turn on": "switch on",
    "turn off": "switch off",
}
# A verb begins the text or follows "and"; "yellow and white mug" has none behind its "and".
_VERB = re.compile(rf"(?:^|(?<=\band ))({'|'.join(_VERBS)})\b", re.IGNORECASE)
_FRAMES = (
    "{}",
    "could you {}, please",
    "there is one more thing to do before we can leave, and that is to {}, so go ahead",
)


def reworded(text: str, level: int) -> str:
    """Returns an instruction in other words; level 0 leaves it as it is.

    Raises:
        ValueError: it has none of the verbs that have another word here.
    """
    if level == 0:
        return text
    other, count = _VERB.subn(lambda verb: _VERBS[verb.group().lower()], text)
    if not count:
        raise ValueError(
            f"the instruction {text!r} has none of the verbs {', '.join(_VERBS)} where a clause "
            "begins, so it cannot be worded otherwise; eval/disturbances/wording.py has them"
        )
    return _FRAMES[level - 1].format(other)
