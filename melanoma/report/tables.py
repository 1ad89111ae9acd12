"""metrics.json as text: the headline, and tables of every figure with its interval and its counts.

Every function takes the metrics as predict.py writes them; of what is not there, a row or the whole table is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_COMPUTED = "not computed"

# Every figure of merit by its key, with its name on the page and its decimals.
FIGURES_OF_MERIT = {
    "auc": ("ROC AUC", 3),
    "partial_auc": ("partial AUC above 80 % sensitivity (at most 0.2)", 3),
    "average_precision": ("average precision", 3),
    "sensitivity": ("sensitivity (recall)", 3),
    "specificity": ("specificity", 3),
    "precision": ("precision (PPV)", 3),
    "npv": ("negative predictive value (NPV)", 3),
    "flag_rate": ("share called melanoma", 3),
    "balanced_accuracy": ("balanced accuracy", 3),
    "accuracy": ("accuracy", 3),
    "always_benign_accuracy": ("accuracy of calling every lesion benign", 3),
    "f1": ("F1", 3),
    "mcc": ("Matthews correlation (MCC)", 3),
    "brier": ("Brier score", 4),
    "ece": ("expected calibration error (ECE)", 4),
    "calibration_slope": ("calibration slope", 3),
    "threshold": ("threshold, chosen on validation (of several runs, the mean)", 4),
}


@dataclass(frozen=True)
class Table:
    """A table as it is shown; the first cell of a row names it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def describe_set(metrics: Mapping[str, Any]) -> str:
    """Return the set's name and its numbers of images, melanomas and patients."""
    text = f"{metrics['set']}: {metrics['n']:,} images, {metrics['n_melanoma']:,} melanoma"
    return text + (f", {metrics['n_patients']:,} patients" if metrics.get("n_patients") else "")


def describe_intervals(metrics: Mapping[str, Any]) -> str:
    """Return what the intervals are, or that there are none."""
    if not (metrics.get("intervals") or metrics.get("auc_interval") or metrics.get("rates")):
        return "No intervals were computed."
    return (
        "Intervals cover 95 %: by bootstrap over patients, all images of a patient drawn together, or, where marked, "
        "Wilson's for a plain rate, which counts every image as independent."
    )


def headline(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the figures to see first, each with its name, value and detail; those without a key are left out."""
    counts = metrics.get("counts")
    tiles = []

    def add(name: str, path: tuple[str, ...], *details: str) -> None:
        value = _at(metrics, path)
        if value is None and path[0] not in metrics:
            return
        if value is None:
            details = (reason_for(metrics, path),)
        elif bootstrap := _interval(metrics, path):
            details = (f"95 % interval {_span(bootstrap)}", *details)
        elif wilson := _at(metrics, ("rates", *path, "wilson")):
            details = (f"95 % interval (Wilson) {_span(wilson)}", *details)
        detail = "; ".join(part for part in details if part)
        tiles.append({"name": name, "value": _number(value), "detail": detail})

    add("ROC AUC", ("auc",))
    found = f"{counts['tp']:,} of {counts['tp'] + counts['fn']:,} melanomas found" if counts else ""
    add("sensitivity", ("sensitivity",), found)
    spared = f"{counts['tn']:,} of {counts['tn'] + counts['fp']:,} benign left alone" if counts else ""
    add("specificity", ("specificity",), spared)
    if "90%" in (metrics.get("sensitivity_at_specificity") or {}):
        add("sensitivity at 90 % specificity", ("sensitivity_at_specificity", "90%"))
    prevalence = metrics["n_melanoma"] / metrics["n"]
    add("average precision", ("average_precision",), f"a blind guess has {prevalence:.3f}")
    always = metrics.get("always_benign_accuracy")
    add("accuracy", ("accuracy",), "" if always is None else f"always benign: {always:.3f}")
    return tiles


def merit_table(metrics: Mapping[str, Any]) -> Table:
    """Return every figure of merit that there is, with its intervals and counts."""
    lines: list[tuple[str, tuple[str, ...], int]] = [
        (name, (key,), digits) for key, (name, digits) in FIGURES_OF_MERIT.items() if key in metrics
    ]
    for key, name in (
        ("sensitivity_at_specificity", "sensitivity at {} specificity"),
        ("specificity_at_sensitivity", "specificity at {} sensitivity"),
    ):
        lines += [(name.format(_percent(share)), (key, share), 3) for share in metrics.get(key) or {}]
    for share, own in (metrics.get("at_prevalence") or {}).items():
        for key in own:
            name = f"{FIGURES_OF_MERIT.get(key, (key, 3))[0]}, were {_percent(share)} melanomas"
            lines.append((name, ("at_prevalence", share, key), 3))
    rows = []
    for name, path, digits in lines:
        value = _at(metrics, path)
        shown = (
            _number(value, digits) if value is not None else f"{NOT_COMPUTED}: {reason_for(metrics, path)}"
        )
        rate = _at(metrics, ("rates", *path)) or {}
        counts = f"{rate['hits']:,} of {rate['of']:,}" if rate else ""
        rows.append([name, shown, _span(_interval(metrics, path)), counts, _span(rate.get("wilson"))])
    header = ["figure", "value", "95 %, bootstrap over patients", "images", "95 %, Wilson"]
    return Table("All figures", header, rows)


def fold_table(metrics: Mapping[str, Any]) -> Table:
    """Return the figures of each fold, and below them those of all folds pooled."""
    folds = metrics.get("folds") or []
    rows = []
    for own in [*folds, metrics] if folds else []:
        rates = (own.get("rates") or {}) if own is metrics else own
        rows.append(
            [
                f"fold {own['fold']}" if own is not metrics else "pooled",
                f"{own['n']:,}",
                f"{own['n_melanoma']:,}",
                _with_span(own.get("auc"), _interval(own, ("auc",))),
                _with_counts(rates.get("sensitivity")),
                _with_counts(rates.get("specificity")),
            ]
        )
    header = [
        "fold",
        "images",
        "melanomas",
        "AUC (95 % interval)",
        "sensitivity (Wilson)",
        "specificity (Wilson)",
    ]
    return Table(
        "Folds", header, rows, "Each fold is judged by runs that never saw it; pooled, all are together."
    )


def control_table(metrics: Mapping[str, Any]) -> Table:
    """Return what stands beside the network: simple rules that it has to beat."""
    controls = metrics.get("controls") or []
    rows: list[list[str]] = []
    for own in [{**metrics, "name": "this network", "note": ""}, *controls] if controls else []:
        at = own.get("sensitivity_at_specificity") or {}
        beaten = {True: "beaten", False: "not beaten"}.get(own.get("beaten"), "not compared")
        rows.append(
            [
                own["name"],
                _with_span(own.get("auc"), _interval(own, ("auc",))),
                _number(own.get("average_precision")),
                ", ".join(f"{_number(value)} at {_percent(share)}" for share, value in at.items()),
                beaten if rows else "",
                own.get("note") or "",
            ]
        )
    unbeaten = [own["name"] for own in controls if own.get("beaten") is False]
    compared = [own for own in controls if own.get("beaten") is not None]
    note = f"The network beats {len(compared) - len(unbeaten)} of {len(compared)} controls."
    if unbeaten:
        note += f" It is not shown to beat: {', '.join(unbeaten)}."
    header = [
        "judged by",
        "AUC (95 % interval)",
        "average precision",
        "sensitivity at specificity",
        "verdict",
        "note",
    ]
    return Table("Controls", header, rows, note)


def subgroup_table(metrics: Mapping[str, Any]) -> Table:
    """Return the figures of every subgroup; those too small are named, with the reason."""
    rows = [
        [
            f"{own['attribute']}: {own['group']}",
            f"{own['n']:,}",
            f"{own['n_melanoma']:,}",
            _with_span(own.get("auc"), own.get("auc_interval")),
            _with_counts(own.get("sensitivity")),
            _with_counts(own.get("specificity")),
            own.get("note") or "",
        ]
        for own in metrics.get("subgroups") or []
    ]
    rates = ["sensitivity (Wilson)", "specificity (Wilson)"]
    header = ["group", "images", "melanomas", "AUC (95 % interval)", *rates, "note"]
    return Table("Subgroups", header, rows)


def run_table(metrics: Mapping[str, Any]) -> Table:
    """Return the runs that judged, and what each chose on validation."""
    keys = ("run_dir", "fold", "validation_fold", "seed", "epoch", "scorer", "test_views", "threshold")
    rows = [[_text(own.get(key)) for key in keys] for own in metrics.get("runs") or []]
    return Table("Runs", [key.replace("_", " ") for key in keys], rows)


def setting_tables(settings: Mapping[str, Any]) -> list[Table]:
    """Return a table of the plain values, then one for each dict or list of dicts, named by their path."""
    tables: list[Table] = []

    def add(title: str, values: Mapping[str, Any]) -> None:
        inner: dict[str, Any] = {}
        rows = []
        for key, value in values.items():
            if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
                inner |= {f"{key} {i}": item for i, item in enumerate(value, start=1)}
            elif isinstance(value, Mapping):
                inner[key] = value
            else:
                rows.append([str(key), _text(value)])
        if rows:
            tables.append(Table(title or "run", ["setting", "value"], rows))
        for key, value in inner.items():
            add(
                f"{title}, {key}" if title else str(key), value if isinstance(value, Mapping) else {"": value}
            )

    add("", settings)
    return tables


# --- values as text ---


def _at(values: Any, path: Sequence[str]) -> Any:
    """Return what lies at a path of keys, None where there is nothing."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _interval(metrics: Mapping[str, Any], path: Sequence[str]) -> Sequence[float] | None:
    """Return the bootstrap interval of a figure, which stands among the intervals or beside the figure."""
    own = _at(metrics.get("intervals"), path)
    return metrics.get(f"{path[0]}_interval") if own is None and len(path) == 1 else own


def reason_for(metrics: Mapping[str, Any], path: Sequence[str]) -> str:
    """Return why a figure is None."""
    reasons = metrics.get("not_computed") or {}
    return reasons.get(".".join(path)) or reasons.get(path[0]) or "no reason given"


def _number(value: float | None, digits: int = 3) -> str:
    return NOT_COMPUTED if value is None else f"{value:.{digits}f}"


def _span(interval: Sequence[float] | None, digits: int = 3) -> str:
    return "" if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _with_span(value: float | None, interval: Sequence[float] | None) -> str:
    return _number(value) + ("" if value is None or interval is None else f" ({_span(interval)})")


def _with_counts(rate: Mapping[str, Any] | None) -> str:
    """Return a rate, see metrics.rate, with its counts and Wilson interval."""
    if not rate or rate["value"] is None:
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
