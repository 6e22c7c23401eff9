"""The page of an evaluation, from its receipt, films and traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.files import differences
from eval.runs.compare import Change, against_control, compare_runs
from eval.runs.seal import SEAL
from eval.runs.traces import Trace, load_trace
from eval.tasks.profiles import NO_ROTATION
from eval.tasks.spec import CHAIN_LENGTH, row_values
from eval.tasks.table import TASKS

from .html import Points, bar_chart, bullet_list, figure_grid, path_chart, plain_table, video
from .quickstart import Report, write_report

_LONGEST_CHAIN = 5
_BINS = 24
# hand -> columns of its position in an action row
_HANDS = {"left": (0, 1, 2), "right": (10, 11, 12)}
# Planes of the charts of a path: the view, and label and number of each axis.
_PLANES = (("from above", "x, m", 0, "y, m", 1), ("from the side", "x, m", 0, "z, m", 2))
_HASH_SHOWN = 16


def write_evaluation_page(path: Path, receipt: Mapping[str, Any], folder: Path) -> None:
    """Writes the page of an evaluation.

    Args:
        path: HTML file.
        receipt: as `eval.runs.receipt.receipt` makes it.
        folder: of its films and traces; missing ones are left out.
    """
    tasks = receipt["tasks"]
    write_report(
        path,
        Report(
            title=f"Evaluation on {', '.join(row_title(n, t['row']) for n, t in tasks.items())}",
            lead=_lead(receipt),
            policies=success_rows(receipt),
            sections=[
                ("By task", _by_task(receipt)),
                *evaluation_sections(receipt, folder),
                ("Receipt", plain_table(_details(receipt), ("what", "value"))),
            ],
            versions={
                f"{process}: {name}": version
                for process, packages in receipt["versions"].items()
                for name, version in packages.items()
            },
            commands=[f"python -m scripts.evaluate {' '.join(receipt['config']['command'])}"],
        ),
    )


def success_rows(receipt: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Returns `Report.policies`: every policy on every row, with the published result below."""
    rows = []
    for name, task in receipt["tasks"].items():
        for policy, entry in task["policies"].items():
            row = row_title(name, task["row"])
            title = policy if len(receipt["tasks"]) == 1 else f"{row}: {policy}"
            rows.append((title, _beside_reference(task, entry), entry["summary"]))
    return rows


def score_text(row: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Returns mean and interval of a policy's scores, and the shares of chains, or "".

    Args:
        row: of the task table, as a receipt has it.
        entry: a policy's part of a receipt.
    """
    score = entry["summary"]["score"]
    if score is None:
        return ""
    low, high = score["bootstrap95"]
    text = f"mean {score['mean']:.2f} {row['score']} (95 % {low:.2f} to {high:.2f})"
    if row["score"] != CHAIN_LENGTH:
        return text
    scores = [episode["score"] for episode in entry["episodes"]]
    shares = [
        f"{100 * sum(score >= n for score in scores) / len(scores):.1f}"
        for n in range(1, _LONGEST_CHAIN + 1)
    ]
    return f"{text}; at least 1 to {_LONGEST_CHAIN}: {' '.join(shares)} %"


def sampler_text(policy: Mapping[str, Any]) -> str:
    """Returns the sampler plan of a policy with its certificate; "" for the default plan."""
    sampler = policy.get("sampler")
    if sampler is None:
        return ""
    seal = sampler["certificate"]
    return f", plan {sampler['plan']}, " + (
        f"certificate {seal[:_HASH_SHOWN]}" if seal else "no certificate"
    )


CHANGE_HEAD = ("changed row", "solved", "control", "points (95 %)", "p, corrected")


def row_title(name: str, row: Mapping[str, Any]) -> str:
    """Returns a row's name with the columns that a command changed."""
    changed = [f"{one['column']} {one['used']}" for one in row.get("overrides", ())]
    return f"{name} with {', '.join(changed)}" if changed else name


def change_cells(change: Change) -> list[str]:
    """Returns what a change did to a policy: cells below `CHANGE_HEAD`."""
    one = change.counts
    difference, low, high = (100 * value for value in one.difference)
    return [
        change.row,
        f"{one.both + one.only_first} of {one.pairs}",
        str(one.both + one.only_second),
        f"{difference:+.0f} ({low:+.0f} to {high:+.0f})",
        f"{one.p_value:.2g}, {change.adjusted:.2g}",
    ]


def _changes(receipt: Mapping[str, Any]) -> str:
    changes = against_control(receipt)
    rows = [[c.policy, c.control, *change_cells(c)] for c in changes]
    table = plain_table(rows, ("policy", "control arm", *CHANGE_HEAD))
    return table + bullet_list(change_notes(receipt, changes))


def change_notes(receipt: Mapping[str, Any], changes: Sequence[Change]) -> list[str]:
    """Returns how the pairs behind `change_cells` were made.

    Args:
        receipt: that has them.
        changes: all of it, as `against_control` gives them.
    """
    rows = {change.row for change in changes}
    tasks = receipt["tasks"]
    own = [name for name in tasks if name in rows and not _keeps_states(tasks[name]["row"])]
    notes = [
        f"{change.row}, {change.policy}: {change.apart} of {change.counts.pairs} pairs began in "
        "different states, although the change keeps them: the comparison is void."
        for change in changes
        if change.apart
    ]
    if own:
        notes.append(
            f"{', '.join(own)}: initial states are another by the change itself; pairs have the "
            "same task and number of state."
        )
    if len(changes) > 1:
        notes.append(
            f"p: McNemar's exact test; corrected by Holm for {len(changes)} comparisons with a "
            "control arm."
        )
    return notes


def _keeps_states(row: Mapping[str, Any]) -> bool:
    return bool(row.get("disturbance", {}).get("same_state", False))


def evaluation_sections(receipt: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Returns pairs of policies, protocol, films, paths and calls, as (heading, HTML)."""
    films, paths = [], []
    for name, task in receipt["tasks"].items():
        for entry in task["films"]:
            title = f"{entry['policy']} on {name}: {_outcome(entry)}"
            if (folder / entry["film"]).is_file():
                views = ", ".join(view["name"] for view in task["row"]["client"]["views"])
                caption = f"Episode {entry['episode']} (task:initial state:seed), {views}."
                films.append((title, video((folder / entry["film"]).read_bytes()), caption))
            client = task["row"]["client"]
            # joints are no place in space
            if client["rotation"] != NO_ROTATION and (folder / entry["trace"]).is_file():
                relative = client["xyz_base"] is not None
                paths += _paths(title, load_trace(folder / entry["trace"]), relative=relative)
    return [
        ("Policies against each other", _pairs(receipt)),
        ("What each change did", _changes(receipt)),
        ("Protocol", bullet_list(protocol_notes(receipt))),
        ("Films", figure_grid(films)),
        ("Predicted chunks over the path of the hand", figure_grid(paths)),
        ("Calls of the policy", _calls(receipt)),
    ]


def protocol_notes(receipt: Mapping[str, Any]) -> list[str]:
    """Returns notes on the protocol that matter when a rate is compared with a published one."""
    notes = []
    for name, task in receipt["tasks"].items():
        frame, stopping = task["golden_frame"], task["stopping"]
        if task["reference"] is None:
            notes.append(f"{name}: no published result of this protocol.")
        row = task["row"]
        states = row["num_init_states"] - (row["held_out"] or 0)
        official = len(row["task_ids"]) * states
        if len(task["plan"]) != official:
            notes.append(f"{name}: {len(task['plan'])} episodes; the row has {official}.")
        notes += [f"{name}, {line}" for line in variant_notes(row, task["texts"])]
        notes += [f"{name}, unlike the authors' client: {line}" for line in _unlike(task["row"])]
        sources = [
            text
            for text in task["texts"].values()
            if "reworded_from" not in text and text["text"].lower() != text["file_text"].lower()
        ]
        if sources:
            notes.append(
                f"{name}: {len(sources)} of {len(task['texts'])} instructions come from the file's "
                "name, as in published results, and the task file has another wording, such as "
                f"“{sources[0]['text']}” for “{sources[0]['file_text']}”."
            )
        notes.append(
            f"{name}: golden frame {frame['state']}. "
            + "; ".join((*frame["differences"], *frame["notes"]))
        )
        if stopping is not None:
            notes.append(
                f"{name}: stopped after {stopping['pairs']} of {stopping['planned']} pairs "
                f"(p = {stopping['p_value']:.3g}, valid at any stop). Stopping early biases the "
                "rates of the two policies away from each other."
            )
        for policy, entry in task["policies"].items():
            errors = entry["summary"]["simulator_errors"]
            if errors:
                notes.append(f"{name}, {policy}: {errors} simulator errors, counted as failures.")
    if receipt["config"]["accept_renderer"]:
        notes.append("A changed simulator or renderer was accepted (--accept_renderer).")
    return notes


def variant_notes(row: Mapping[str, Any], texts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns what a row was disturbed by, and the columns that a command changed.

    Args:
        row: as a receipt has it.
        texts: of its tasks, as a receipt has them.
    """
    notes = [
        f"--{one['column']}: {one['used']} in place of {one['own'] or 'what the policy chooses'}."
        for one in row.get("overrides", ())
    ]
    change = row.get("disturbance")
    if change:
        notes.append(
            f"disturbed: {change['axis']}, level {change['level']} ({change['amount']:g} "
            f"{change['unit']}). Level, task, state and seed alone decide what an episode meets."
        )
    reworded = [text for text in texts.values() if "reworded_from" in text]
    if reworded:
        notes.append(f"words: “{reworded[0]['text']}” for “{reworded[0]['reworded_from']}”.")
    return notes


def _unlike(row: Mapping[str, Any]) -> list[str]:
    """Returns the columns in which a row differs from the faithful row of its name."""
    faithful = row["name"].partition(":")[0]
    if faithful == row["name"] or faithful not in TASKS:
        return []
    stated = ("name", "reference", "control", "disturbance", "overrides")
    ours = {k: v for k, v in row.items() if k not in stated}
    theirs = json.loads(json.dumps(row_values(TASKS[faithful])))
    return differences(ours, {k: theirs.get(k) for k in ours})


def _lead(receipt: Mapping[str, Any]) -> str:
    config = receipt["config"]
    episodes = sum(
        entry["summary"]["episodes"]
        for task in receipt["tasks"].values()
        for entry in task["policies"].values()
    )
    index, count = config["shard"]
    part = "" if count == 1 else f", part {index} of {count}"
    return (
        f"{episodes} episodes{part} with {config['num_workers']} simulators at once in "
        f"{config['seconds'] / 60:.1f} minutes. Success is success at any step."
    )


def _beside_reference(task: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    reference, needed = task["reference"], entry["episodes_to_separate"]
    texts = [text for text in (score_text(task["row"], entry),) if text]
    if reference is not None:
        texts.append(
            f"published {reference['value']:g} {reference['unit']} ({reference['source']})"
        )
    if needed is not None:
        texts.append(f"{needed} episodes each would separate the two rates")
    return "; ".join(texts)


def _by_task(receipt: Mapping[str, Any]) -> str:
    rows = []
    for name, task in receipt["tasks"].items():
        for policy, entry in task["policies"].items():
            for task_id, s in entry["by_task"].items():
                low, high = s["interval95"]
                rows.append(
                    [
                        name,
                        f"{task_id}: {s['task']}",
                        policy,
                        f"{s['successes']} of {s['episodes']}",
                        f"{100 * s['rate']:.0f} %",
                        f"{100 * low:.0f} to {100 * high:.0f} %",
                    ]
                )
    return plain_table(rows, ("suite", "task", "policy", "solved", "rate", "95 %"))


def _pairs(receipt: Mapping[str, Any]) -> str:
    names = list(receipt["policies"])
    rows = []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            for task, one in compare_runs(receipt, first, receipt, second).items():
                if not one.pairs:
                    continue
                difference, low, high = (100 * value for value in one.difference)
                counts = (one.both, one.only_first, one.only_second, one.neither)
                rows.append(
                    [
                        task,
                        f"{first} / {second}",
                        *(str(count) for count in counts),
                        f"{difference:+.0f} ({low:+.0f} to {high:+.0f})",
                        f"{one.p_value:.2g}",
                    ]
                )
    head = ("suite", "first / second", "both", "only first", "only second", "neither")
    return plain_table(rows, (*head, "difference, points (95 %)", "McNemar p"))


def _paths(title: str, trace: Trace, *, relative: bool) -> list[tuple[str, str, str]]:
    figures, path_name = [], "measured path"
    if relative:
        trace, path_name = trace.placed(), "commanded path"
    for hand, columns in _HANDS.items():
        width = min(rows.shape[-1] for rows in (trace.path, *trace.chunks[:1]))
        # The proprio of a robot with one arm has zeros in the place of the second.
        if width <= columns[-1] or not trace.path[:, columns].any():
            continue
        for view, x_label, x, y_label, y in _PLANES:
            shown = [columns[x], columns[y]]
            chart = path_chart(
                _points(trace.path, shown),
                [_points(chunk, shown) for chunk in trace.chunks],
                x_label=x_label,
                y_label=y_label,
                path_name=path_name,
            )
            figures.append((f"{title}, {hand} hand {view}", chart, ""))
    return figures


def _points(rows: NDArray[np.float32], columns: Sequence[int]) -> Points:
    return [(float(x), float(y)) for x, y in rows[:, columns]] if rows.size else []


def _calls(receipt: Mapping[str, Any]) -> str:
    figures = []
    for name, task in receipt["tasks"].items():
        for policy, entry in task["policies"].items():
            calls = entry["calls"]
            warm = [m for m, f in zip(calls["milliseconds"], calls["first"]) if not f]
            if not warm:
                continue
            steps = sum(episode["steps"] for episode in entry["episodes"])
            p50, p90, p99 = (calls["latency_ms"][key] for key in ("p50", "p90", "p99"))
            counts, edges = np.histogram(warm, bins=_BINS)
            latency = bar_chart(edges.tolist(), counts.tolist(), x_label="milliseconds of a call")
            caption = (
                f"{calls['calls']} calls; half within {p50:.0f} ms, 90 % within {p90:.0f}, "
                f"99 % within {p99:.0f}. Without {calls['calls'] - len(warm)} first calls of a "
                "batch size, which may compile."
            )
            figures.append((f"{policy} on {name}: latency", latency, caption))
            most = max(calls["batches"])
            sizes = np.bincount(calls["batches"], minlength=most + 1)[1:]
            fill = bar_chart(
                [k + 0.5 for k in range(most + 1)],
                sizes.tolist(),
                x_label="observations in a call",
                integers=True,
            )
            caption = (
                f"Batch fill {100 * calls['batch_fill']:.0f} %; {calls['observations']} "
                f"observations for {steps} control steps."
            )
            figures.append((f"{policy} on {name}: batches", fill, caption))
    return figure_grid(figures)


def _details(receipt: Mapping[str, Any]) -> list[list[str]]:
    git = receipt["git"]
    rows = [["receipt schema", str(receipt["schema"])], ["renderer", receipt["renderer"]]]
    if git is not None:
        rows.append(["git revision", git["revision"] + (" with changes" * git["changed"])])
    for name, policy in receipt["policies"].items():
        digest = policy["hash"]
        source = f"{policy['kind']} {policy['source']}".strip()
        shown = f", hash {digest[:_HASH_SHOWN]}" if digest else ", no parameters to hash"
        rows.append([f"policy {name}", source + shown + sampler_text(policy)])
    rows.append(["seal", receipt[SEAL]])
    rows += [[f"option {k}", str(v)] for k, v in receipt["config"].items() if k != "command"]
    return rows


def _outcome(entry: Mapping[str, Any]) -> str:
    return "a success" if entry["success"] else "a failure"
