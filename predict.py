"""Score lesions with a trained run and draw the figures: `python predict.py` (paths: config.py, or flags).

`python predict.py photo.jpg folder/` and `python predict.py --submission` judge lesions without a label instead. The
model.pt of a run, or a file of `--export`, is all that judging needs.

Three layers meet in `main`: score (on the device) -> predictions.csv; measure (NumPy) -> metrics.json; draw (arrays to
figures) -> graph/*.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from config import RECIPES, Config
from melanoma.common.errors import InputError
from melanoma.common.files import is_file, is_folder
from melanoma.common.settings import Parser, add_flags, experiment, from_flags, with_machine
from melanoma.report import DPI, FORMATS
from melanoma.scoring import SCORERS

CHOICES = ("min_sensitivity", "prevalence", "scorer")
LOOPBACK = "127.0.0.1"
FIRST_MODEL = Path(__file__).parent / "models" / "strong.pt"  # trained on both public sets, see its MODEL_CARD.md


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        "Evaluate a trained run on its test part and draw the figures, or judge photos without a label. The "
        "experiment comes from the run's checkpoint; paths and device are those of this machine.",
        "python predict.py [PHOTO ...] [--FLAG VALUE ...]",
    )
    add_flags(parser, Config, RECIPES, only_machine=True)
    add = parser.add_argument_group("what is judged (default: the test part)").add_argument
    add(
        "photos", type=Path, nargs="*", metavar="PHOTO", help="photos and folders of photos; name them before the flags"
    )
    add(
        "--run-dir",
        type=_absolute,
        nargs="+",
        metavar="DIR",
        help="one run, or several: runs of one test part are averaged (ensemble), folds are pooled",
    )
    file = "a model file in place of --run-dir; without either and a run, photos are judged by models/strong.pt"
    add("--model", type=_absolute, metavar="FILE", help=file)
    add("--evaluate-image", type=_absolute, metavar="DIR", help="evaluate another labelled folder")
    add("--evaluate-labels", type=_absolute, metavar="CSV", help="labels of --evaluate-image")
    runs = "compare the AUC of --run-dir with that of these runs"
    add("--compare", type=_absolute, nargs="+", metavar="DIR", help=runs)
    validation = "evaluate this part of the runs' own split (test); validation lets choices be compared"
    add("--split-part", choices=("test", "validation"), default="test", help=validation)
    submission = "judge test_image and write submission.csv for ISIC 2020"
    add("--submission", action="store_true", help=submission)
    add("--export", type=_absolute, metavar="FILE", help="write the runs as one model file, with its MODEL_CARD.md")
    page = "serve a page on this machine that judges photos; with an address of this machine, to others too"
    add("--serve", nargs="?", const=LOOPBACK, metavar="ADDRESS", help=page)
    add("--slim", action="store_true", help="export without pictures and names of the training lesions, in float16")
    expected = "export a card with these metrics, of other runs with the same settings: those of a cross-validation"
    add("--card-metrics", type=_absolute, metavar="JSON", help=expected)
    add = parser.add_argument_group("how it is judged").add_argument
    add(
        "--min-sensitivity",
        type=float,
        metavar="SHARE",
        help="threshold: the most specific one with this sensitivity on validation (default: the one whose smaller of "
        "sensitivity and specificity is largest)",
    )
    add(
        "--prevalence",
        type=float,
        metavar="SHARE",
        help="share of melanomas that the probabilities are for, 0.0176 in ISIC 2020 (default: that of validation)",
    )
    add("--scorer", choices=SCORERS, help="way of scoring (default: head where one is trained, else neighbours)")
    cards = "draw a card of each photo (default: of up to 200 photos)"
    add("--cards", action=argparse.BooleanOptionalAction, help=cards)
    add("--metrics-file", type=_absolute, metavar="FILE", help="write the metrics here")
    formats = f"formats of the figures beside PNG: {', '.join(FORMATS)}, with commas between them"
    add("--figure-format", type=_formats, default=(), metavar="LIST", help=formats)
    add("--figure-dpi", type=int, choices=(DPI, 2 * DPI), default=DPI, help=f"resolution of the figures ({DPI})")
    return parser


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def _formats(text: str) -> tuple[str, ...]:
    values = tuple(text.split(","))
    if not set(values) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"{text}: it must be of {', '.join(FORMATS)}, with commas between them")
    return values


def parse_arguments() -> argparse.Namespace:
    """Return the command line; stop with a line for flags that do not go together."""
    parser = make_parser()
    arguments = parser.parse_args()
    if (arguments.evaluate_image is None) != (arguments.evaluate_labels is None):
        parser.error("--evaluate-image and --evaluate-labels go together")
    other = [bool(vars(arguments)[name]) for name in ("photos", "submission", "compare", "export", "serve")]
    asked = sum([*other, bool(arguments.evaluate_image)])
    if asked > 1:
        things = "photos, --submission, --evaluate-image, --compare, --export and --serve"
        parser.error(f"{things} are different things: ask for one")
    if arguments.split_part != "test" and asked:
        parser.error("--split-part goes with an evaluation of the runs' own split")
    if arguments.cards is not None and not arguments.photos:
        parser.error("--cards goes with photos: name them before the flags")
    for flag, value in (
        ("--metrics-file", arguments.metrics_file),
        ("--figure-format", arguments.figure_format),
        ("--figure-dpi", arguments.figure_dpi != DPI),
    ):
        if value and any(other):
            parser.error(
                f"{flag} goes with an evaluation, not with photos, --submission, --compare, --export or --serve"
            )
    for flag, given in (("--slim", arguments.slim), ("--card-metrics", arguments.card_metrics)):
        if given and not arguments.export:
            parser.error(f"{flag} goes with --export")
    if arguments.export and any(vars(arguments)[name] is not None for name in CHOICES):
        parser.error(
            "--min-sensitivity, --prevalence and --scorer are chosen where the file is used, not with --export"
        )
    if arguments.model and arguments.run_dir:
        parser.error("--model takes the place of --run-dir: pass one of them")
    if arguments.model and not is_file(arguments.model):
        parser.error(f"--model {arguments.model} is no file: name a model.pt of train.py, or a file of --export")
    for flag, folders, advice in (
        ("--run-dir", arguments.run_dir or (), "name photos before the flags"),
        ("--compare", arguments.compare or (), "it takes run folders"),
    ):
        for path in folders:
            if is_file(path) or path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".bmp"):
                parser.error(f"{flag} {path} is {'a file' if is_file(path) else 'no run'}: {advice}")
            if [other.resolve() for other in folders].count(path.resolve()) > 1:
                parser.error(f"{flag} names {path} twice: a run counts once")
    return arguments


ARGUMENTS = argparse.Namespace()
if __name__ == "__main__":  # --help and misspelt flags are answered before the slow imports below
    ARGUMENTS = parse_arguments()

from collections.abc import Set
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dataset import columns_of, decode, sample_pairs, validating_fold
from melanoma.common.device import choose_device, choose_precision, describe_device, keep_freed_memory
from melanoma.common.files import replace_file, write_json, write_text
from melanoma.common.script import run_script
from melanoma.data.decoding import find_photos
from melanoma.data.duplicates import lists_in_use, read_duplicates
from melanoma.data.feed import Feed
from melanoma.data.labels import read_labels
from melanoma.data.sources import describe_folders, find_source_images, read_tables
from melanoma.data.split import without_images
from melanoma.data.synthetic import is_generated
from melanoma.evaluation.controls import METADATA
from melanoma.evaluation.evaluate import add_context, compare_runs, measure, measure_controls, with_features
from melanoma.evaluation.subgroups import subgroup_table
from melanoma.report import new_lesions
from melanoma.report.curves import describe_parts, learning_curves
from melanoma.report.export import check_target, write_export
from melanoma.report.figures import draw_all
from melanoma.report.graph_folder import Origin, clear_others, origin_of, save_drawn
from melanoma.report.model_card import card_of
from melanoma.report.page import render
from melanoma.report.serve import serve
from melanoma.report.tables import describe_comparison, describe_metrics
from melanoma.scoring.ensemble import (
    Choices,
    Ensemble,
    Run,
    by_test_part,
    describe_ensemble,
    describe_runs,
    ensemble_notes,
    make_ensemble,
    make_run,
    runs_of,
)
from melanoma.scoring.labelled import Scored, score_folder, score_part
from melanoma.scoring.model import Model
from melanoma.scoring.model_file import read_model
from melanoma.training import run_folder
from modules import network_of, stored_network


def main(
    machine: Config,
    run_dirs: Sequence[Path] = (),
    evaluate_image: Path | None = None,
    evaluate_labels: Path | None = None,
    choices: Choices = Choices(),
    metrics_file: Path | None = None,
    part: str = "test",
    figure_format: Sequence[str] = (),
    figure_dpi: int = DPI,
) -> dict[str, Any]:
    """Evaluate runs on a part of their split, or on another labelled folder; return the metrics.

    predictions.csv is written first, then metrics.json, then the figures and report.html.

    Runs with one test part are averaged; runs with different ones, the folds of a cross-validation, are pooled: each
    judges its own. `run_dirs`, folders of runs and model files, defaults to the machine's run. Figures are PNG, and in
    `figure_format` too.
    """
    keep_freed_memory()
    labels = read_labels(evaluate_labels, "evaluate_labels", columns_of(machine)) if evaluate_labels else None
    ensembles = load_ensembles(machine, run_dirs, choices)
    first = ensembles[0].runs[0]

    # score
    say("scoring the lesions")
    if evaluate_image and labels:
        name, prefix = f"folder {Path(*evaluate_image.absolute().parts[-2:])}", run_folder.EVALUATED
        lists = lists_in_use(machine.duplicates, machine.train_labels)
        twins = [pair for path in lists for pair in read_duplicates(path)]
        scored = score_folder(ensembles, evaluate_image, labels, partial(decode, machine), twins)
    else:
        name, prefix = part, "" if part == "test" else run_folder.VALIDATED
        scored = score_own(machine, ensembles, part)
    out = results_folder(machine, run_dirs)
    predictions_path = out / f"{prefix}predictions.csv"
    replace_file(predictions_path, lambda temporary: scored.table.to_csv(temporary, index=False))

    # measure
    say("computing metrics and their bootstrap intervals")
    rng = np.random.default_rng([first.settings["seed"], 0])
    origin = origin_of(runs_of(ensembles), [evaluate_image] if evaluate_image else [])
    metrics = {
        "set": name,
        "origin": origin.line,
        "settings": dict(first.settings),
        "data": first.data,
        "notes": [*scored.notes, *ensemble_notes(ensembles)],
        "choices": asdict(choices),
        "runs": describe_runs(ensembles),
        **measure(scored.table, rng),
    }
    if choices.prevalence is not None:
        metrics["notes"].append(
            f"The probabilities are for a prevalence of {100 * choices.prevalence:g} %, as --prevalence asks: "
            "calibration error, Brier score and calibration curve compare them with data of another prevalence"
        )
    if part == "validation":
        metrics["notes"].append("Epoch, calibration curve and threshold were chosen on this part")
    if not evaluate_image and part == "test":
        tested = count_evaluations(run_dirs or [machine.run_dir], choices)
        if tested:
            metrics["test_evaluations"] = max(tested, key=len)
    say("computing subgroups")
    splits = [ensemble.lesions for ensemble in ensembles if ensemble.lesions is not None]
    known = labels.table if labels else pd.concat(splits).drop_duplicates("image_name")
    lesions = add_context(scored.table, scored.cache, known)
    metrics["subgroups"] = subgroup_table(lesions, rng)
    if evaluate_image:
        reason = "they are learnt on the training part and judge its test part alone"
        metrics["not_computed"]["controls"] = reason
    else:
        say("training the controls and comparing the network with them")
        folds = [table.assign(part=table["part"].replace({"test": "", part: "test"})) for table in splits]
        metrics["controls"] = measure_controls(folds, scored.table, rng)
    metrics_path = metrics_file or out / f"{prefix}metrics.json"
    write_json(metrics_path, metrics)
    say("\n".join([describe_metrics(metrics), *metrics["notes"]]))

    # draw
    say("drawing the figures")
    truth = lesions["label"].to_numpy()[: len(scored.embeddings)]
    pairs = sample_pairs(truth, rng) if min(np.bincount(truth, minlength=2)) >= 2 else None
    margin = first.settings["margin"]
    drawn, missing = draw_all(lesions, metrics, scored.cache, scored.embeddings, pairs, margin, rng)
    metrics["not_computed"] |= missing
    write_json(metrics_path, metrics)
    drawn = {"Train_average_loss.png": draw_log(ensembles, origin), **drawn}
    clear_others(machine.graph_dir, origin.mark)
    pictures = save_drawn(drawn, machine.graph_dir, origin.mark, figure_format, figure_dpi)
    card = card_of(ensembles, choices, metrics)
    settings = {
        "Settings of the run": first.settings,
        "Options of the evaluation": metrics["choices"],
        "Start of the training": list(first.starts),
    }
    page = f"{render(metrics, pictures, settings, card)}<!-- {origin.mark} -->\n"
    write_text(machine.graph_dir / "report.html", page)
    names = ", ".join(name for name, picture in pictures.items() if picture is not None)
    print(f"wrote {predictions_path}, {metrics_path}, and in {machine.graph_dir} report.html, {names}")
    return metrics


def count_evaluations(run_dirs: Sequence[Path], choices: Choices) -> list[list[Any]]:
    """Note an evaluation of the test part in each run folder, and return all that were made of each.

    A model file takes no notes.
    """
    return [run_folder.count_evaluation(path, asdict(choices)) for path in run_dirs if is_folder(path)]


def draw_log(ensembles: Sequence[Ensemble], origin: Origin) -> Figure:
    """Return the learning curves of the first run."""
    first = ensembles[0].runs[0]
    own = {"training": first.reference_labels, "validation": first.validation["label"].to_numpy()}
    alone = f"; {Path(first.name).name} alone" if len(runs_of(ensembles)) > 1 else ""
    return learning_curves(first.log, first.epoch, f"{describe_parts(own)}{alone}\n{origin.line}")


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
    scored = [score_own(machine, load_ensembles(machine, side, choices)) for side in sides]
    try:
        names = [", ".join(map(str, side)) for side in sides]
        found = compare_runs([one.table for one in scored], names, np.random.default_rng(0))
    except ValueError as error:
        raise InputError(f"--compare: {error}: both need one split, split_seed and the same folds") from None
    count_evaluations([path for side in sides for path in side], choices)
    path = machine.graph_dir / "comparison.json"
    write_json(path, found)
    print(describe_comparison(found))
    print(f"wrote {path}")
    return found


def judge_photos(
    machine: Config,
    run_dirs: Sequence[Path],
    photos: Sequence[Path],
    choices: Choices = Choices(),
    cards: bool | None = None,
) -> pd.DataFrame:
    """Judge photos without a label; see `new_lesions.judge_photos`."""
    keep_freed_memory()
    paths = find_photos(photos)
    model, origin = load_model(machine, run_dirs, choices)
    return new_lesions.judge_photos(model, paths, results_folder(machine, run_dirs), machine.graph_dir, origin, cards)


def serve_page(machine: Config, run_dirs: Sequence[Path], address: str, choices: Choices = Choices()) -> None:
    """Serve a page that judges photos; see `melanoma.report.serve`."""
    model, origin = load_model(machine, run_dirs, choices)
    serve(model, origin.line, address)


def write_submission(machine: Config, run_dirs: Sequence[Path], choices: Choices = Choices()) -> pd.DataFrame:
    """Judge the challenge's test images; see `new_lesions.write_submission`."""
    keep_freed_memory()
    names, paths = new_lesions.find_test_images(machine.test_image, machine.test_labels)
    ensembles = load_ensembles(machine, run_dirs, choices)
    out = results_folder(machine, run_dirs)
    return new_lesions.write_submission(ensembles, names, paths, partial(decode, machine), out)


def export(
    machine: Config, run_dirs: Sequence[Path], file: Path, slim: bool = False, card_metrics: Path | None = None
) -> None:
    """Write runs to one model file with its MODEL_CARD.md; see `melanoma.report.export`."""
    file = file.resolve()
    own = [(path / run_folder.MODEL).resolve() for path in run_dirs or [machine.run_dir]] == [file] and not slim
    check_target(file, stored_network, own)
    ensembles = load_ensembles(machine, run_dirs)
    write_export(ensembles, file, results_folder(machine, run_dirs) / "metrics.json", RECIPES, slim, card_metrics)


def results_folder(machine: Config, run_dirs: Sequence[Path]) -> Path:
    """Return where tables go: the run's folder, or that of the graphs for several runs and for a model file."""
    places = run_dirs or [machine.run_dir]
    return places[0] if len(places) == 1 and is_folder(places[0]) else machine.graph_dir


def load_model(machine: Config, run_dirs: Sequence[Path], choices: Choices) -> tuple[Model, Origin]:
    """Load runs and model files to judge photos; print and return what they are."""
    model = Model(load_ensembles(machine, run_dirs, choices), machine.workers)
    origin = origin_of(runs_of(model.ensembles))
    say(origin.line)
    return model, origin


def load_ensembles(machine: Config, run_dirs: Sequence[Path], choices: Choices = Choices()) -> list[Ensemble]:
    """Load run folders and model files, by default the machine's run, as an ensemble for each test part."""
    runs = [run for path in run_dirs or [machine.run_dir] for run in load_runs(machine, path)]
    say(f"predicting on {describe_device(runs[0].device, runs[0].dtype)}")
    ensembles = [make_ensemble(members, choices) for members in by_test_part(runs)]
    for ensemble in ensembles:
        say(describe_ensemble(ensemble))
    return ensembles


def load_runs(machine: Config, path: Path) -> list[Run]:
    """Load the runs of a model file, or the one of a run folder."""
    if is_file(path):
        return read_model(path, stored_network, choose_device(machine.device))
    return [load_run(replace(machine, run_dir=path))]


def load_run(machine: Config) -> Run:
    """Load the run of `machine.run_dir` from its model.pt, or without one from its best checkpoint."""
    file = machine.run_dir / run_folder.MODEL
    if not is_file(file):
        return load_checkpoint(machine)
    runs = read_model(file, stored_network, choose_device(machine.device))
    if len(runs) > 1:
        raise InputError(f"{file} holds {len(runs)} runs, not that of its folder: pass --model {file}")
    return replace(runs[0], name=str(machine.run_dir))


def load_checkpoint(machine: Config) -> Run:
    """Load the best checkpoint of `machine.run_dir`, of a training that has not ended, or of an earlier version.

    Raises
    ------
    InputError : no run there, a checkpoint that does not fit, images of the run that are missing
    """
    say(f"loading {machine.run_dir}")
    path = machine.run_dir / "best.pt"
    state = run_folder.load_checkpoint(path)
    with run_folder.fitting(path):
        epoch = int(run_folder.best_entry(state["log"])["epoch"])
    config: Config = with_machine(state["config"], machine, str(path))
    log = run_folder.read_log(config.run_dir / "log.jsonl")
    if len(log) < config.epochs:
        say(f"{config.run_dir} has not finished its training: epoch {len(log)} of {config.epochs}")
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    try:
        network = network_of(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    with run_folder.fitting(path):
        network.load_state_dict(state["model"])
    network = network.to(device)

    table = run_folder.read_split(config.run_dir)
    found = find_lesions(config, table["source"].unique(), set(table["image_name"]))
    cache = decode(config, {name: found[name] for name in sorted(table["image_name"])}, config.image_size)
    table = without_images(table, cache.errors)
    table = table.join(read_metadata(config), on="image_name").fillna({"sex": "", "site": ""}).astype({"age": float})
    say(f"embedding {(table['part'] != 'test').sum():,} images of its training and validation parts")
    return make_run(
        network,
        Feed(cache, device),
        with_features(table, cache),
        dtype,
        name=str(config.run_dir),
        settings=experiment(config),
        validation_fold=validating_fold(config),
        epoch=epoch,
        log=log,
        starts=run_folder.read_starts(config.run_dir),
        data=describe_folders(config.train_image),
        synthetic=any(map(is_generated, config.train_image)),
    )


def read_metadata(machine: Config) -> pd.DataFrame:
    """Return age, sex and site of the labelled images by name; an empty table where the labels are not there."""
    there = bool(machine.train_labels) and all(map(is_file, machine.train_labels))
    tables = read_tables(machine.train_labels, machine.train_metadata, columns_of(machine)) if there else []
    named = [found.table.set_index("image_name")[METADATA] for found in tables]
    return pd.concat(named) if named else pd.DataFrame(columns=METADATA)


def score_own(machine: Config, ensembles: list[Ensemble], part: str = "test") -> Scored:
    """Judge a part of the runs' own split; see `score_part`."""
    return score_part(ensembles, partial(find_lesions, machine), partial(decode, machine), part)


def find_lesions(machine: Config, sources: Sequence[str], names: Set[str]) -> Mapping[str, Path]:
    """Return the files of the named images of a run, in the folders of its sources.

    Raises
    ------
    InputError : some are not there
    """
    found = find_source_images(machine.train_image, sources, names)
    missing = sorted(names - set(found))
    if missing:
        raise InputError(
            f"train_image lacks {len(missing):,} images of the run, {missing[0]} for one: "
            "point it at the folder that the run was trained on"
        )
    return found


def say(text: str) -> None:
    """Print what is being done, at once."""
    print(text, flush=True)


def run(arguments: argparse.Namespace | None = None) -> None:
    """Predict as the command line asks."""
    arguments = arguments or parse_arguments()
    run_dirs = vars(arguments).pop("run_dir") or ([arguments.model] if arguments.model else [])
    choices = Choices(**{name: vars(arguments)[name] for name in CHOICES})
    machine: Config = from_flags(Config, RECIPES, arguments)
    new = arguments.photos or arguments.serve or arguments.submission or arguments.evaluate_image
    if new and not run_dirs and not is_folder(machine.run_dir) and is_file(FIRST_MODEL):
        run_dirs = [FIRST_MODEL]
        say(f"{machine.run_dir} is not there: judging with {FIRST_MODEL}")
    if arguments.photos:
        judge_photos(machine, run_dirs, arguments.photos, choices, arguments.cards)
    elif arguments.submission:
        write_submission(machine, run_dirs, choices)
    elif arguments.export:
        export(machine, run_dirs, arguments.export, arguments.slim, arguments.card_metrics)
    elif arguments.serve:
        serve_page(machine, run_dirs, arguments.serve, choices)
    elif arguments.compare:
        compare(machine, run_dirs, arguments.compare, choices)
    else:
        folder = arguments.evaluate_image, arguments.evaluate_labels
        figures = arguments.figure_format, arguments.figure_dpi
        main(machine, run_dirs, *folder, choices, arguments.metrics_file, arguments.split_part, *figures)


if __name__ == "__main__":
    run_script(lambda: run(ARGUMENTS))
