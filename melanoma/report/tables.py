"""metrics.json as text: what predict.py prints, the headline, and tables of all metrics with intervals and counts.

All functions take the metrics as predict.py writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from melanoma.common.errors import counted, printable

NOT_COMPUTED = "not computed"

# Every metric by its key, with its name on the page and its decimals.
METRICS = {
    "auc": ("ROC AUC", 3),
    "partial_auc": ("pAUC, sensitivity > 80 % (max 0.2)", 3),
    "average_precision": ("average precision", 3),
    "sensitivity": ("sensitivity (recall)", 3),
    "specificity": ("specificity", 3),
    "precision": ("precision (PPV)", 3),
    "npv": ("negative predictive value (NPV)", 3),
    "flag_rate": ("share called melanoma", 3),
    "balanced_accuracy": ("balanced accuracy", 3),
    "accuracy": ("accuracy", 3),
    "always_benign_accuracy": ("accuracy of always benign", 3),
    "f1": ("F1", 3),
    "mcc": ("Matthews correlation coefficient (MCC)", 3),
    "brier": ("Brier score", 4),
    "ece": ("expected calibration error (ECE)", 4),
    "calibration_slope": ("calibration slope", 3),
    "threshold": ("threshold, chosen on validation (mean of several runs)", 4),
}
AUC_COLUMN = "AUC (95 % interval)"
GROUP_COLUMNS = ["images", "melanomas", AUC_COLUMN, "sensitivity (Wilson)", "specificity (Wilson)", "note"]


@dataclass(frozen=True)
class Table:
    """A table as it is shown; the first cell of a row is its heading."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def describe_set(metrics: Mapping[str, Any]) -> str:
    """Return the set's name and its numbers of images, melanomas and patients, and of groups if that number differs."""
    counts = [("n", "image"), ("n_melanoma", "melanoma"), ("n_patients", "patient")]
    if metrics["n_groups"] != metrics["n_patients"]:
        counts.append(("n_groups", "group"))
    text = ", ".join(counted(metrics[key], noun) for key, noun in counts)
    if metrics["n_without_id"]:
        text += ", {n_without_id:,} images without a patient or lesion id".format_map(metrics)
    return f"{metrics['set']}: {text}"


def interval_notes(metrics: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the intervals must know of this set, a sentence each."""
    notes = []
    if "intervals" in metrics["not_computed"]:
        notes.append(f"There are no intervals: {reason_for(metrics, 'intervals')}")
    if metrics["n_without_id"]:
        notes.append(
            f"{metrics['n_without_id']:,} images have no patient or lesion id: each counts as a group of its own, so "
            "intervals may be too narrow, and other images of the same patient may be in training"
        )
    return notes


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """Return the main metrics as text for the terminal."""
    lines = [f"{tile['name']:<34} {tile['value']}  {tile['detail']}".rstrip() for tile in headline(metrics)]
    keys = ("partial_auc", "balanced_accuracy", "ece", "calibration_slope", "brier")
    lines += [f"{METRICS[key][0]:<34} {_number(metrics[key])}" for key in keys]
    lines += [row["verdict"] for row in metrics.get("controls", [])]
    return "\n  ".join(
        [printable(describe_set(metrics)), printable(metrics["origin"]), *lines, *interval_notes(metrics)]
    )


def describe_comparison(found: Mapping[str, Any]) -> str:
    """Return a comparison of two runs, see `evaluate.compare_runs`, as text."""
    if found["difference"] is None:
        return "{a} and {b}: not compared, {not_computed}".format_map(found)
    sure = "95 % interval {interval[0]:+.3f} to {interval[1]:+.3f}, p {p:.3f}"
    if found["interval"] is None:
        sure = "no interval: {not_computed}"
    return (
        "{a}: AUC {auc_a:.3f}; {b}: AUC {auc_b:.3f}, on the same {n:,} images; difference {difference:+.3f} "
        f"({sure})"
    ).format_map(found)


def headline(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the most important metrics, each with its name, value and detail."""
    tp, fp, tn, fn = (metrics["counts"][key] for key in ("tp", "fp", "tn", "fn"))
    tiles = []
    for name, path, detail in (
        ("ROC AUC", ("auc",), ""),
        ("sensitivity", ("sensitivity",), f"; {tp:,} true positives of {tp + fn:,} melanomas"),
        ("specificity", ("specificity",), f"; {tn:,} true negatives of {tn + fp:,} benign lesions"),
        ("sensitivity at 90 % specificity", ("sensitivity_at_specificity", "90%"), f"; {_off_curve(metrics)}"),
        ("average precision", ("average_precision",), f"; chance: {metrics['n_melanoma'] / metrics['n']:.3f}"),
        ("precision (PPV)", ("precision",), f"; {tp:,} melanomas of {tp + fp:,} called melanoma"),
        ("F1", ("f1",), "; harmonic mean of precision and sensitivity"),
        ("accuracy", ("accuracy",), f"; always benign: {metrics['always_benign_accuracy']:.3f}"),
    ):
        value, interval = _at(metrics, path), _at(metrics["intervals"], path)
        detail = reason_for(metrics, path[0]) if value is None else f"{_interval(interval)}{detail}"
        tiles.append({"name": name, "value": _number(value), "detail": detail})
    return tiles


def by_source(metrics: Mapping[str, Any]) -> list[str]:
    """Return the metrics of each source of lesions, a line each; none if there is one source alone."""
    rows = [row for row in metrics.get("subgroups", []) if row["attribute"] == "source"]
    names = ("images", "melanomas", "AUC", "sensitivity", "specificity")
    return [
        f"{printable(row['group'])}: "
        + ", ".join(f"{name} {cell}" for name, cell in zip(names, _group_cells(row)[:5], strict=True))
        + "."
        for row in rows
    ]


def all_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Return the tables of the page; there may be no folds or controls."""
    tables = [metric_table(metrics)]
    if metrics.get("folds"):
        tables.append(fold_table(metrics))
    if metrics.get("controls"):
        tables.append(control_table(metrics))
    return [*tables, subgroup_table(metrics), run_table(metrics)]


def metric_table(metrics: Mapping[str, Any]) -> Table:
    """Return every metric with its intervals and counts."""
    lines: list[tuple[str, tuple[str, ...], int]] = [(name, (key,), digits) for key, (name, digits) in METRICS.items()]
    for key, name in (
        ("sensitivity_at_specificity", "sensitivity at {} specificity"),
        ("specificity_at_sensitivity", "specificity at {} sensitivity"),
    ):
        name = f"{name}, {_off_curve(metrics)}"
        lines += [(name.format(_percent(level)), (key, level), 3) for level in metrics[key]]
    for share, own in metrics["at_prevalence"].items():
        prevalence = f"at {_percent(share)} prevalence"
        lines += [(f"{METRICS[key][0]} {prevalence}", ("at_prevalence", share, key), 3) for key in own]
    rows = []
    for name, path, digits in lines:
        value, interval = _at(metrics, path), _at(metrics["intervals"], path)
        rate = _at(metrics["rates"], path) or {"wilson": None}
        reason = f": {reason_for(metrics, path[0])}" if value is None else ""
        counts = f"{rate['hits']:,} of {rate['of']:,}" if "hits" in rate else ""
        rows.append([name, _number(value, digits) + reason, _span(interval), counts, _span(rate["wilson"])])
    if "auc_with_id" in metrics:
        own = metrics["auc_with_id"]
        reason = metrics["not_computed"].get("auc_with_id", "")
        value, span = _number(own["auc"]), _span(own["auc_interval"])
        value, span = (f"{value}: {reason}", "") if own["auc"] is None else (value, span or f"no interval: {reason}")
        counts = f"{own['n']:,} of {metrics['n']:,}"
        rows.insert(1, ["ROC AUC of the images with a patient or lesion id", value, span, counts, ""])
    for key, own in metrics["at_specific_threshold"].items():
        name = f"{key} at the threshold with 90 % specificity on validation"
        rows.append([name, _number(own["value"]), "", f"{own['hits']:,} of {own['of']:,}", _span(own["wilson"])])
    header = ["metric", "value", "95 %, bootstrap over groups", "images", "95 %, Wilson"]
    return Table("All metrics", header, rows, "".join(f"{note}. " for note in interval_notes(metrics)).rstrip())


def fold_table(metrics: Mapping[str, Any]) -> Table:
    """Return the metrics of each fold, and in the last row those of all folds pooled."""
    pooled = {**metrics, **metrics["rates"], "note": metrics["not_computed"].get("intervals", "")}
    rows = [[f"fold {own['fold']}", *_group_cells(own)] for own in metrics["folds"]]
    rows.append(["pooled", *_group_cells(pooled)])
    note = "Each fold is judged by runs that have not seen it; the last row pools all folds."
    return Table("Folds", ["fold", *GROUP_COLUMNS], rows, note)


def subgroup_table(metrics: Mapping[str, Any]) -> Table:
    """Return the metrics of every subgroup; those too small are listed with the reason."""
    rows = [[f"{own['attribute']}: {own['group']}", *_group_cells(own)] for own in metrics["subgroups"]]
    return Table("Subgroups", ["group", *GROUP_COLUMNS], rows)


def control_table(metrics: Mapping[str, Any]) -> Table:
    """Return a row for the network, then one for each control."""
    rows = []
    for own in [{**metrics, "name": "this network", "note": ""}, *metrics["controls"]]:
        rates = own["sensitivity_at_specificity"].items()
        at = ", ".join(f"{_number(rate)} at {_percent(level)}" for level, rate in rates)
        better = {True: "better", False: "not better", None: "not compared"}[own["beaten"]] if "beaten" in own else ""
        average = _number(own["average_precision"])
        rows.append([own["name"], _with_span(own["auc"], own["auc_interval"]), average, at, better, own["note"]])
    verdicts = [own["beaten"] for own in metrics["controls"] if own["beaten"] is not None]
    note = f"The network is better than {sum(verdicts)} of {len(verdicts)} controls."
    if not verdicts:
        note = f"The network is not compared with the controls: {reason_for(metrics, 'intervals')}."
    elif not all(verdicts):
        names = ", ".join(own["name"] for own in metrics["controls"] if own["beaten"] is False)
        note += f" Not shown to be better than: {names}."
    header = [
        "judged by",
        AUC_COLUMN,
        "average precision",
        f"sensitivity at specificity, {_off_curve(metrics)}",
        "network is",
        "note",
    ]
    return Table("Controls", header, rows, note)


def run_table(metrics: Mapping[str, Any]) -> Table:
    """Return the runs, and what was chosen for each on validation."""
    keys = ("run_dir", "fold", "validation_fold", "seed", "epoch", "scorer", "test_views", "threshold")
    rows = [[_text(own[key]) for key in keys] for own in metrics["runs"]]
    return Table("Runs", [key.replace("_", " ") for key in keys], rows)


def setting_tables(settings: Mapping[str, Any], title: str = "") -> list[Table]:
    """Return a table of the plain values, then one for each dict or list of dicts, named by their path."""
    rows: list[list[str]] = []
    tables: list[Table] = []
    for key, value in settings.items():
        named = {key: value}
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            several = len(value) > 1
            named = {f"{key} {i}" if several else key: item for i, item in enumerate(value, start=1)}
        for name, own in named.items():
            if isinstance(own, Mapping):
                tables += setting_tables(own, f"{title}, {name}" if title else name)
            else:
                rows.append([name, _text(own)])
    return ([Table(title or "run", ["setting", "value"], rows)] if rows else []) + tables


# --- values as text ---


def reason_for(metrics: Mapping[str, Any], key: str) -> str:
    """Return why a metric or figure is missing."""
    return metrics["not_computed"].get(key, "no reason given")


def _off_curve(metrics: Mapping[str, Any]) -> str:
    """Return where a metric comes from whose threshold is none that was chosen before."""
    return f"read off the {'validation' if metrics['set'] == 'validation' else 'test'} curve"


def _group_cells(own: Mapping[str, Any]) -> list[str]:
    """Return the cells of a fold or subgroup, see `bootstrap.brief_metrics`."""
    auc = _with_span(own["auc"], own["auc_interval"])
    rates = [_with_counts(own[key]) for key in ("sensitivity", "specificity")]
    return [f"{own['n']:,}", f"{own['n_melanoma']:,}", auc, *rates, own["note"]]


def _at(values: Any, path: Sequence[str]) -> Any:
    """Return the value at a path of keys, None if there is none."""
    for key in path:
        values = values.get(key) if values else None
    return values


def _number(value: float | None, digits: int = 3) -> str:
    return NOT_COMPUTED if value is None else f"{value:.{digits}f}"


def _span(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _interval(interval: Sequence[float] | None) -> str:
    return "no interval" if interval is None else f"95 % interval {_span(interval)}"


def _with_span(value: float | None, interval: Sequence[float] | None) -> str:
    return NOT_COMPUTED if value is None else f"{value:.3f} ({_span(interval) or 'no interval'})"


def _with_counts(rate: Mapping[str, Any] | None) -> str:
    """Return a rate, see `metrics.rate`, with its counts and Wilson interval."""
    if rate is None or rate["value"] is None:
        return NOT_COMPUTED
    return f"{rate['value']:.3f} ({rate['hits']:,} of {rate['of']:,}; {_span(rate['wilson'])})"


def _percent(share: str) -> str:
    return share.replace("%", " %")


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)
