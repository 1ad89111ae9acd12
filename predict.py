"""Score lesions with a trained run and draw the figures: `python predict.py` (paths: config.py, or flags).

`python predict.py photo.jpg folder/` and `python predict.py --submission` judge lesions without a label, see
unlabelled.py; what follows here is the evaluation on labelled ones.

Three layers that meet only in `main`: score (panel.py, on the device) -> predictions.csv; measure (NumPy) ->
metrics.json; draw (arrays to figures) -> graph/*.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from config import Config, add_flags, from_flags, to_dict
from melanoma.common.device import keep_freed_memory
from melanoma.common.errors import InputError, printable
from melanoma.common.files import is_file, replace_file, write_json, write_text
from melanoma.common.script import run_script
from melanoma.data.decoding import EXTENSIONS
from melanoma.evaluation.evaluate import (
    add_context,
    compare_runs,
    measure,
    measure_controls,
    metadata_notes,
    read_metadata,
)
from melanoma.evaluation.subgroups import subgroup_table
from melanoma.report import page, style
from melanoma.report.figures import draw_all, learning_curves
from melanoma.report.new_lesions import CARDS, judge_photos, write_submission
from melanoma.scoring.ensemble import (
    Choices,
    Panel,
    describe_method,
    describe_run,
    load_panels,
    results_folder,
    score_folder,
    score_tests,
)
from melanoma.scoring.scores import CALIBRATIONS, SCORERS
from melanoma.training import run_folder


def main(
    machine: Config,
    run_dirs: Sequence[Path] = (),
    evaluate_image: Path | None = None,
    evaluate_labels: Path | None = None,
    choices: Choices = Choices(),
    metrics_file: Path | None = None,
) -> dict[str, Any]:
    """Evaluate runs on their test parts, or on another labelled folder; return the metrics.

    Runs with one test part are averaged; runs with different ones, the folds of a cross-validation, are pooled: each
    judges its own. `run_dirs` defaults to the machine's one.
    """
    keep_freed_memory()
    if evaluate_labels:
        metadata, unknown = read_metadata(evaluate_labels, "evaluate_labels")
    else:
        metadata, unknown = read_metadata(machine.train_labels, "train_labels")
    panels = load_panels(machine, run_dirs, choices)
    unnamed = [] if evaluate_labels else metadata_notes(panels, metadata, machine.train_labels)
    first = panels[0].runs[0]
    log = run_folder.read_log(first.config.run_dir / "log.jsonl")
    starts = run_folder.read_starts(first.config.run_dir)
    if evaluate_image and evaluate_labels:
        name, prefix = f"folder {Path(*evaluate_image.absolute().parts[-2:])}", run_folder.EVALUATED
        scored = score_folder(panels, evaluate_image, evaluate_labels)
    else:
        name, prefix = "test", ""
        scored = score_tests(panels)
    out = results_folder(panels, machine)
    path = out / f"{prefix}predictions.csv"
    replace_file(path, lambda temporary: scored.table.to_csv(temporary, index=False))

    rng = np.random.default_rng([first.config.seed, 0])
    metrics: dict[str, Any] = {
        "set": name,
        "notes": [*scored.notes, *calibration_notes(choices), *unnamed],
        "choices": asdict(choices),
        "runs": [describe_run(panel, i) for panel in panels for i in range(len(panel.runs))],
    }
    metrics |= measure(scored.table, rng)
    lesions = add_context(scored, metadata)
    metrics["subgroups"] = subgroup_table(lesions, rng)
    if not evaluate_image:
        metrics["controls"] = measure_controls(panels, scored, metadata, rng)
    else:
        metrics["not_computed"]["controls"] = (
            "they are learnt on the training part and judge its test part alone"
        )
    if unknown:
        metrics["not_computed"]["metadata"] = unknown
    metrics_path = metrics_file or out / f"{prefix}metrics.json"
    write_json(metrics_path, metrics)
    print("\n".join([describe_metrics(metrics), *metrics["notes"]]))

    drawn, missing = draw_all(lesions, scored, metrics, first, rng)
    metrics["not_computed"] |= missing
    write_json(metrics_path, metrics)
    drawn = {"Train_average_loss.png": learning_curves(log, first, len(metrics["runs"]) > 1), **drawn}
    save_drawn(drawn, machine.graph_dir)
    write_report(machine.graph_dir / "report.html", metrics, drawn, panels, choices, starts)
    names = [file_name for file_name, figure in drawn.items() if figure is not None]
    print(f"wrote {path}, {metrics_path}, and in {machine.graph_dir} page.html, {', '.join(names)}")
    return metrics


def compare(
    machine: Config, run_dirs: Sequence[Path], others: Sequence[Path], choices: Choices = Choices()
) -> dict[str, Any]:
    """Compare runs with others by their AUC on the same test images; either side is judged as `main` judges it.

    Raises
    ------
    InputError : the two have different test images
    """
    keep_freed_memory()
    sides = [run_dirs or [machine.run_dir], others]
    scored = [score_tests(load_panels(machine, side, choices)) for side in sides]
    try:
        names = [", ".join(map(str, side)) for side in sides]
        found = compare_runs(scored, names, np.random.default_rng(0))
    except ValueError as error:
        raise InputError(f"--compare: {error}: both need one split, split_seed and the same folds") from None
    path = machine.graph_dir / "comparison.json"
    write_json(path, found)
    print(describe_comparison(found))
    print(f"wrote {path}")
    return found


def save_drawn(drawn: dict[str, Figure | None], folder: Path) -> None:
    """Save the figures, and remove those of an earlier evaluation that this one has not."""
    for name, figure in drawn.items():
        if figure is None:
            (folder / name).unlink(missing_ok=True)
        else:
            style.save_figure(figure, folder / name)


def write_report(
    path: Path,
    metrics: dict[str, Any],
    drawn: dict[str, Figure | None],
    panels: Sequence[Panel],
    choices: Choices,
    starts: list[Any],
) -> None:
    """Write the page with figures, tables, settings and model card; the figures are read from its folder.

    starts : as `run_folder.read_starts`, of the panels' first run
    """
    pictures = {
        name: None if figure is None else (path.parent / name).read_bytes() for name, figure in drawn.items()
    }
    first = panels[0].runs[0]
    settings = {"config": to_dict(first.config), "choices": metrics["choices"], "made": starts}
    learnt = [(panel.runs[0].config.fold, panel.table.query("part == 'train'")["label"]) for panel in panels]
    sizes = "; ".join(
        f"fold {fold}: {len(labels):,} images, {labels.sum():,} melanoma" for fold, labels in learnt
    )
    card = page.ModelCard(
        training_data=f"The training parts of {first.config.train_image} (split {first.config.split!r}): {sizes}.",
        evaluation_data=f"{metrics['n']:,} images of {metrics['n_patients']:,} patients, "
        f"{metrics['n_melanoma']:,} melanomas; none of them chose anything. "
        + "".join(f"{note}. " for note in metrics["notes"]),
        model=describe_method(panels, choices),
    )
    text = page.render(metrics, pictures, settings, card)
    write_text(path, text)


def calibration_notes(choices: Choices) -> list[str]:
    """Return what must be known of the calibration's figures, a sentence each."""
    if choices.prevalence is None:
        return []
    return [
        f"The probabilities are for a prevalence of {100 * choices.prevalence:g} %, as --prevalence asks: calibration "
        "error, Brier score and calibration curve compare them with data of another prevalence"
    ]


def describe_metrics(metrics: dict[str, Any]) -> str:
    """Return the figures as text; rates stand with their counts."""

    def show(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.3f}"

    at = metrics["sensitivity_at_specificity"]
    counts = metrics["counts"]
    interval = metrics["auc_interval"]
    within = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f}, over patients)" if interval else ""
    return "\n".join(
        [
            f"{printable(metrics['set'])}: {metrics['n']:,} images, {metrics['n_melanoma']:,} melanoma",
            f"  AUC                {show(metrics['auc'])}{within}",
            f"  partial AUC        {show(metrics['partial_auc'])} above 80 % sensitivity (at most 0.2)",
            f"  average precision  {show(metrics['average_precision'])}",
            "  sensitivity at     "
            + ", ".join(f"{show(value)} ({share} specificity)" for share, value in at.items()),
            f"  calibration error  {show(metrics['ece'])} (ECE), slope "
            f"{show(metrics['calibration_slope'])}, Brier score {show(metrics['brier'])}",
            f"  sensitivity        {show(metrics['sensitivity'])} ({counts['tp']} of "
            f"{counts['tp'] + counts['fn']} melanomas found)",
            f"  specificity        {show(metrics['specificity'])} ({counts['tn']} of "
            f"{counts['tn'] + counts['fp']} benign left alone)",
            f"  precision          {show(metrics['precision'])}",
            f"  F1                 {show(metrics['f1'])}",
            f"  balanced accuracy  {show(metrics['balanced_accuracy'])}",
            f"  accuracy           {show(metrics['accuracy'])} (always benign: "
            f"{show(metrics['always_benign_accuracy'])})",
            *(f"  {row['verdict']}" for row in metrics.get("controls", []) if row["verdict"]),
        ]
    )


def describe_comparison(found: dict[str, Any]) -> str:
    """Return a comparison of two runs as text."""
    if found["interval"] is None:
        return f"{found['a']} and {found['b']}: not compared, {found['not_computed']}"
    low, high = found["interval"]
    return (
        f"{found['a']}: AUC {found['auc_a']:.3f}; {found['b']}: AUC {found['auc_b']:.3f}, on the same "
        f"{found['n']:,} images; difference {found['difference']:+.3f} (95 % interval {low:+.3f} to {high:+.3f}, "
        f"p {found['p']:.3f})"
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Score lesions with a trained run and draw the figures. What was trained comes from the "
        "run's checkpoint; the flags below are this machine's.",
        allow_abbrev=False,
        conflict_handler="resolve",  # --run-dir takes several here
    )
    parser.add_argument(
        "photos",
        type=Path,
        nargs="*",
        metavar="PHOTO",
        help="judge these images, and those of these folders, which have no label: a row in new_lesions.csv and a "
        "figure in lesions/ of graph_dir each (name them before the flags; default: evaluate on the test part)",
    )
    add_flags(parser, only_machine=True)
    parser.add_argument(
        "--submission",
        action="store_true",
        help="judge test_image, named by test_labels, and write submission.csv for the ISIC 2020 leaderboard",
    )
    parser.add_argument(
        "--cards",
        action=argparse.BooleanOptionalAction,
        help=f"draw a figure of each photo (default: of up to {CARDS} photos, of none where there are more)",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="one run, or several: runs of one test part are averaged, the folds of a cross-validation pooled "
        f"(default: {Config().run_dir}; the results of several go to graph_dir)",
    )
    parser.add_argument("--evaluate-image", type=Path, metavar="DIR", help="evaluate another labelled folder")
    parser.add_argument("--evaluate-labels", type=Path, metavar="CSV", help="labels of --evaluate-image")
    parser.add_argument(
        "--min-sensitivity",
        type=partial(_share, most=1.0),
        metavar="SHARE",
        help="threshold: the most specific that finds this share of validation's melanomas (default: the one whose "
        "smaller of sensitivity and specificity is largest)",
    )
    parser.add_argument(
        "--calibration",
        choices=CALIBRATIONS,
        default="platt",
        help="how scores become probabilities (default: platt)",
    )
    parser.add_argument(
        "--prevalence",
        type=_share,
        metavar="SHARE",
        help="share of melanomas where the probabilities shall hold, 0.0176 in ISIC 2020 (default: validation's)",
    )
    parser.add_argument(
        "--scorer", choices=SCORERS, help="how embeddings are scored (default: best on validation)"
    )
    parser.add_argument(
        "--test-views",
        dest="views",
        type=int,
        choices=(1, 8),
        help="views of a lesion (default: the run's own)",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="compare the run or runs of --run-dir with these by their AUC on the same test images",
    )
    parser.add_argument("--metrics-file", type=Path, metavar="FILE", help="write the metrics here")
    return parser


def _share(text: str, most: float = 0.999) -> float:
    value = float(text)
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"{text}: it must be above 0, at most {most:g}")
    return value


def run() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    if (arguments.evaluate_image is None) != (arguments.evaluate_labels is None):
        parser.error("--evaluate-image and --evaluate-labels go together")
    asked = [bool(arguments.photos), arguments.submission, arguments.evaluate_image is not None]
    if sum([*asked, arguments.compare is not None]) > 1:
        parser.error("photos, --submission, --evaluate-image and --compare are different things: ask for one")
    if arguments.cards is not None and not arguments.photos:
        parser.error("--cards goes with photos: name them before the flags")
    if arguments.metrics_file and (arguments.photos or arguments.submission or arguments.compare):
        parser.error("--metrics-file goes with an evaluation, not with photos, --submission or --compare")
    run_dirs = vars(arguments).pop("run_dir") or ()
    for flag, folders, advice in (
        ("--run-dir", run_dirs, "name photos before the flags"),
        ("--compare", arguments.compare or (), "it takes run folders"),
    ):
        for path in folders:
            if is_file(path) or path.suffix.lower() in EXTENSIONS:
                parser.error(f"{flag} {path} is {'a file' if is_file(path) else 'no run'}: {advice}")
            if [other.resolve() for other in folders].count(path.resolve()) > 1:
                parser.error(f"{flag} names {path} twice: a run counts once")
    machine = from_flags(arguments)
    choices = Choices(**{item.name: getattr(arguments, item.name) for item in fields(Choices)})
    if arguments.photos:
        judge_photos(machine, run_dirs, arguments.photos, choices, arguments.cards)
    elif arguments.submission:
        write_submission(machine, run_dirs, choices)
    elif arguments.compare:
        compare(machine, run_dirs, arguments.compare, choices)
    else:
        main(
            machine,
            run_dirs,
            arguments.evaluate_image,
            arguments.evaluate_labels,
            choices,
            arguments.metrics_file,
        )


if __name__ == "__main__":
    run_script(run)
