"""metrics.json as text: what predict.py prints, the headline, and tables of all metrics with intervals and counts.

All functions take the metrics as predict.py writes them; a row or table without its key is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from melanoma.common.errors import printable

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
RATE_COLUMNS = ("sensitivity (Wilson)", "specificity (Wilson)")


@dataclass(frozen=True)
class Table:
    """A table as it is shown; the first cell of a row is its heading."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def describe_set(metrics: Mapping[str, Any]) -> str:
    """Return the set's name and its numbers of images, melanomas and patients."""
    text = f"{metrics['set']}: {metrics['n']:,} images, {metrics['n_melanoma']:,} melanoma"
    return text + (f", {metrics['n_patients']:,} patients" if metrics.get("n_patients") else "")


def describe_intervals(metrics: Mapping[str, Any]) -> str:
    """Return how the intervals are computed, or that there are none."""
    if not (metrics.get("intervals") or metrics.get("auc_interval") or metrics.get("rates")):
        return "No intervals were computed."
    return (
        "Intervals are 95 %: by bootstrap over patients (all images of a patient are drawn together) or, where marked, "
        "Wilson's for rates, which assume independent images."
    )


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """Return the main metrics as text for the terminal."""
    lines = [f"{tile['name']:<34} {tile['value']}  {tile['detail']}".rstrip() for tile in headline(metrics)]
    keys = ("partial_auc", "precision", "f1", "balanced_accuracy", "ece", "calibration_slope", "brier")
    lines += [f"{METRICS[key][0]:<34} {_number(metrics[key])}" for key in keys]
    lines += [row["verdict"] for row in metrics.get("controls", []) if row["verdict"]]
    return "\n  ".join([printable(describe_set(metrics)), *lines])


def describe_comparison(found: Mapping[str, Any]) -> str:
    """Return a comparison of two runs, see `evaluate.compare_runs`, as text."""
    if found["interval"] is None:
        return f"{found['a']} and {found['b']}: not compared, {found['not_computed']}"
    low, high = found["interval"]
    return (
        f"{found['a']}: AUC {found['auc_a']:.3f}; {found['b']}: AUC {found['auc_b']:.3f}, on the same "
        f"{found['n']:,} images; difference {found['difference']:+.3f} (95 % interval {low:+.3f} to {high:+.3f}, "
        f"p {found['p']:.3f})"
    )


def headline(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the most important metrics, each with its name, value and detail; those without a key are left out."""
    counts, always = metrics.get("counts"), metrics.get("always_benign_accuracy")
    tiles = []
    for name, path, detail in (
        ("ROC AUC", ("auc",), ""),
        ("sensitivity", ("sensitivity",), _positives(counts) if counts else ""),
        ("specificity", ("specificity",), _negatives(counts) if counts else ""),
        ("sensitivity at 90 % specificity", ("sensitivity_at_specificity", "90%"), ""),
        ("average precision", ("average_precision",), f"chance: {metrics['n_melanoma'] / metrics['n']:.3f}"),
        ("accuracy", ("accuracy",), "" if always is None else f"always benign: {always:.3f}"),
    ):
        value = _at(metrics, path)
        if path[-1] not in (_at(metrics, path[:-1]) or {}):
            continue
        if value is None:
            detail = reason_for(metrics, path)
        else:
            interval, wilson = _interval(metrics, path), _at(metrics, ("rates", *path, "wilson"))
            kind = "95 % interval" if interval else "95 % interval (Wilson)"
            span = f"{kind} {_span(interval or wilson)}" if interval or wilson else ""
            detail = "; ".join(part for part in (span, detail) if part)
        tiles.append({"name": name, "value": _number(value), "detail": detail})
    return tiles


def all_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Return the tables of the page that have rows."""
    makers = (metric_table, fold_table, control_table, subgroup_table, run_table)
    return [table for make in makers if (table := make(metrics)).rows]


def metric_table(metrics: Mapping[str, Any]) -> Table:
    """Return every metric that there is, with its intervals and counts."""
    lines: list[tuple[str, tuple[str, ...], int]] = [
        (name, (key,), digits) for key, (name, digits) in METRICS.items() if key in metrics
    ]
    for key, name in (
        ("sensitivity_at_specificity", "sensitivity at {} specificity"),
        ("specificity_at_sensitivity", "specificity at {} sensitivity"),
    ):
        lines += [(name.format(_percent(level)), (key, level), 3) for level in metrics.get(key) or {}]
    for share, own in (metrics.get("at_prevalence") or {}).items():
        lines += [
            (f"{METRICS[key][0]} at {_percent(share)} prevalence", ("at_prevalence", share, key), 3) for key in own
        ]
    rows = []
    for name, path, digits in lines:
        value, rate = _at(metrics, path), _at(metrics, ("rates", *path)) or {}
        reason = f": {reason_for(metrics, path)}" if value is None else ""
        counts = f"{rate['hits']:,} of {rate['of']:,}" if rate else ""
        spans = _span(_interval(metrics, path)), _span(rate.get("wilson"))
        rows.append([name, _number(value, digits) + reason, spans[0], counts, spans[1]])
    header = ["metric", "value", "95 %, bootstrap over patients", "images", "95 %, Wilson"]
    return Table("All metrics", header, rows)


def fold_table(metrics: Mapping[str, Any]) -> Table:
    """Return the metrics of each fold, and in the last row those of all folds pooled."""
    folds = metrics.get("folds") or []
    rows = [[f"fold {own['fold']}", *_group_cells(own)] for own in folds]
    if folds:
        rows.append(["pooled", *_group_cells({**metrics, **(metrics.get("rates") or {})})])
    note = "Each fold is judged by runs that have not seen it; the last row pools all folds."
    return Table("Folds", ["fold", "images", "melanomas", AUC_COLUMN, *RATE_COLUMNS], rows, note)


def subgroup_table(metrics: Mapping[str, Any]) -> Table:
    """Return the metrics of every subgroup; those too small are listed with the reason."""
    rows = [
        [f"{own['attribute']}: {own['group']}", *_group_cells(own), own.get("note") or ""]
        for own in metrics.get("subgroups") or []
    ]
    header = ["group", "images", "melanomas", AUC_COLUMN, *RATE_COLUMNS, "note"]
    return Table("Subgroups", header, rows)


def control_table(metrics: Mapping[str, Any]) -> Table:
    """Return the controls below the network."""
    controls = metrics.get("controls") or []
    rows: list[list[str]] = []
    for own in [{**metrics, "name": "this network", "note": ""}, *controls] if controls else []:
        at = own.get("sensitivity_at_specificity") or {}
        better = {True: "better", False: "not better"}.get(own.get("beaten"), "not compared")
        rows.append(
            [
                own["name"],
                _with_span(own.get("auc"), _interval(own, ("auc",))),
                _number(own.get("average_precision")),
                ", ".join(f"{_number(value)} at {_percent(share)}" for share, value in at.items()),
                better if rows else "",
                own.get("note") or "",
            ]
        )
    verdicts = [own.get("beaten") for own in controls if own.get("beaten") is not None]
    note = f"The network is better than {sum(verdicts)} of {len(verdicts)} controls."
    if not all(verdicts):
        names = ", ".join(own["name"] for own in controls if own.get("beaten") is False)
        note += f" Not shown to be better than: {names}."
    rates = ["average precision", "sensitivity at specificity"]
    return Table("Controls", ["judged by", AUC_COLUMN, *rates, "network is", "note"], rows, note)


def run_table(metrics: Mapping[str, Any]) -> Table:
    """Return the runs, and what was chosen for each on validation."""
    keys = ("run_dir", "fold", "validation_fold", "seed", "epoch", "scorer", "test_views", "threshold")
    rows = [[_text(own.get(key)) for key in keys] for own in metrics.get("runs") or []]
    return Table("Runs", [key.replace("_", " ") for key in keys], rows)


def setting_tables(settings: Mapping[str, Any], title: str = "") -> list[Table]:
    """Return a table of the plain values, then one for each dict or list of dicts, named by their path."""
    rows: list[list[str]] = []
    inner: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            inner |= {f"{key} {i}": item for i, item in enumerate(value, start=1)}
        elif isinstance(value, Mapping):
            inner[str(key)] = value
        else:
            rows.append([str(key), _text(value)])
    tables = [Table(title or "run", ["setting", "value"], rows)] if rows else []
    for key, value in inner.items():
        values = value if isinstance(value, Mapping) else {"": value}
        tables += setting_tables(values, f"{title}, {key}" if title else key)
    return tables


# --- values as text ---


def _positives(counts: Mapping[str, int]) -> str:
    return f"{counts['tp']:,} true positives of {counts['tp'] + counts['fn']:,} melanomas"


def _negatives(counts: Mapping[str, int]) -> str:
    return f"{counts['tn']:,} true negatives of {counts['tn'] + counts['fp']:,} benign lesions"


def _group_cells(own: Mapping[str, Any]) -> list[str]:
    """Return the cells of a fold or subgroup, see `bootstrap.brief_metrics`."""
    auc = _with_span(own.get("auc"), _interval(own, ("auc",)))
    rates = [_with_counts(own.get(name)) for name in ("sensitivity", "specificity")]
    return [f"{own['n']:,}", f"{own['n_melanoma']:,}", auc, *rates]


def _at(values: Any, path: Sequence[str]) -> Any:
    """Return the value at a path of keys, None if there is none."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _interval(metrics: Mapping[str, Any], path: Sequence[str]) -> Sequence[float] | None:
    """Return the bootstrap interval of a metric: from the intervals, or from the key beside the metric."""
    own = _at(metrics.get("intervals"), path)
    return metrics.get(f"{path[0]}_interval") if own is None and len(path) == 1 else own


def reason_for(metrics: Mapping[str, Any], path: Sequence[str]) -> str:
    """Return why a metric is None."""
    reasons = metrics.get("not_computed") or {}
    return reasons.get(".".join(path)) or reasons.get(path[0]) or "no reason given"


def _number(value: float | None, digits: int = 3) -> str:
    return NOT_COMPUTED if value is None else f"{value:.{digits}f}"


def _span(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _with_span(value: float | None, interval: Sequence[float] | None) -> str:
    return _number(value) + ("" if value is None or interval is None else f" ({_span(interval)})")


def _with_counts(rate: Any) -> str:
    """Return a rate, see `metrics.rate`, with its counts and Wilson interval."""
    if not isinstance(rate, Mapping) or rate["value"] is None:
        return NOT_COMPUTED
    return f"{_number(rate['value'])} ({rate['hits']:,} of {rate['of']:,}; {_span(rate['wilson'])})"


def _percent(share: str) -> str:
    return share.replace("%", " %")


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)
