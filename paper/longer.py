"""The same models trained for longer: their runs beside those of another profile, from result files alone.

Equal epochs are not equal recipes: a small model, or one with strong augmentation, may need more of them.
"""

from __future__ import annotations

from statistics import mean

from paper.comparisons import known_groups, share
from paper.facts import interval_over_seeds
from paper.results import by_model, describe, epochs_of, label_of, span
from paper.statistics import interval_of, mean_draws


def longer_table(runs, more):
    """(DataFrame of text, caption): one row for each model of `more`, runs after more epochs than those of `runs`.

    Models without `runs`, or whose files lack the counts of each speaker, are left out. The difference is that of the
    means over seeds; its interval is by bootstrap over speakers and seeds, the speakers the same for both sides.
    """
    from pandas import DataFrame

    short, long = known_groups(runs), known_groups(more)
    models = [model for model in by_model(runs) if model in short and model in long]
    models.sort(key=lambda model: -mean(map(share, long[model])))
    after, later = (span(epochs_of([run for run in part if run["model"] in models])) for part in (runs, more))
    draws = mean_draws({(model, part): own[model] for part, own in enumerate((short, long)) for model in models})
    rows = []
    for model in models:
        before, now = ([run for run in part if run["model"] == model] for part in (runs, more))
        low, high = interval_over_seeds(now)
        gain = mean(map(share, long[model])) - mean(map(share, short[model]))
        least, most = interval_of(draws[model, 1] - draws[model, 0])
        rows.append(
            {
                "model": label_of(model),
                **{
                    f"{split} (%), after {epochs}": f"{100 * mean(run[split]['accuracy'] for run in part):.2f}"
                    for split in ("validation", "test")
                    for epochs, part in ((after, before), (later, now))
                },
                f"95 % interval, after {later}": f"{100 * low:.2f}–{100 * high:.2f}",
                "test, difference (points)": f"{100 * gain:+.2f} ({100 * least:+.2f} to {100 * most:+.2f})",
                "seeds": f"{len(before)} and {len(now)}",
            }
        )
    caption = (
        f"After {after} and after {later} epochs; validation and test accuracy, means over seeds; difference with its "
        f"95 % interval over speakers and the few seeds, no p. {describe([r for r in more if r['model'] in models])}"
    )
    return DataFrame(rows), caption
