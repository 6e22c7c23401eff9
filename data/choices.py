"""What is drawn for each visit of a training sample: its text, its views, the jitter of each view.

Every choice is a function of the seed, the dataset and the place of the sample in the stream, so
neither hosts nor threads nor a restart change it. Without a seed nothing is drawn. The jitter is
only drawn here: pixels stay as decoded, and the train step applies it.
"""

from __future__ import annotations

from data.jitter import AUGMENTS, UNCHANGED, Jitter
from data.sampling import uniforms
from data.stream.stream import Sample


def choose_instruction(sample: Sample, seed: int | None) -> str:
    """The late instruction of the row, a paraphrase, or the text of the sample's first frame.

    X-VLA keeps a text once drawn for the rest of the episode, early frames included; here each
    sample draws anew.
    """
    spec, episode = sample.spec, sample.episode
    text, paraphrases = episode.text(sample.row)
    if seed is None or not (spec.late_instruction or paraphrases):
        return text
    drawn = uniforms(3, seed, *sample.visit, "text").tolist()
    late = spec.late_instruction
    if late is not None:
        frame, num_frames = int(episode.frames[sample.row]), episode.num_frames
        after = num_frames // 2 if late.after_frame is None else late.after_frame
        if frame > after and drawn[0] < frame / num_frames:
            return late.text
    if not paraphrases or drawn[1] < spec.original_text_share:
        return text
    return paraphrases[int(drawn[2] * len(paraphrases))]


def choose_num_views(sample: Sample, seed: int | None) -> int:
    """All views, or the main one alone as often as the row says."""
    spec = sample.spec
    if seed is None or spec.main_view_share == 0:
        return len(spec.views)
    (drawn,) = uniforms(1, seed, *sample.visit, "views")
    return 1 if drawn < spec.main_view_share else len(spec.views)


def choose_jitter(sample: Sample, view: int, seed: int | None) -> Jitter:
    """What the device is to do with the colours of view number `view`, as the row augments."""
    if seed is None:
        return UNCHANGED
    return AUGMENTS[sample.spec.augment](seed, *sample.visit, "jitter", view)
