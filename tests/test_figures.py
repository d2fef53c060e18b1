"""Figures: they show the numbers of the result files, legibly, and are the same bytes every time."""

import os
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from made_results import a_run

from kwslib.models.registry import MODELS
from paper import diagrams, figures
from paper.figure_style import look, save_figure
from paper.results import load_benchmark, load_runs

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def drawn(results, claims):
    rng = np.random.default_rng(0)
    mel, power = rng.normal(size=(63, 128)), rng.random((63, 1_025))
    features = diagrams.feature_pipeline(rng.normal(size=16_000), power, mel, mel, np.zeros_like(mel))
    every = figures.paper_figures(load_runs(results), claims) | figures.timing_figures(load_benchmark(results))
    return every | {"features": (features, "")}


def test_every_figure_is_saved_as_pdf_and_png_the_same_bytes_in_every_process(results, drawn, tmp_path):
    code = (
        "import sys; from paper import figures; from paper.figure_style import save_figure; "
        "from paper.results import *; results, out = sys.argv[1:]; "
        "drawn = figures.paper_figures(load_runs(results), load_claims()); "
        "drawn |= figures.timing_figures(load_benchmark(results)); "
        "[save_figure(fig, out + '/quick', name) for name, (fig, _) in drawn.items()]"
    )
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code, str(results), str(tmp_path)], env=env) as other:
        for name, (fig, _) in drawn.items():
            save_figure(fig, tmp_path / "here", name)
    names = set(drawn)
    assert other.returncode == 0
    assert names == {
        "learning_curves",
        "confusion",
        "accuracy_parameters",
        "accuracy_macs",
        "latency",
        "latency_gpu",
        "length",
        "architecture",
        "features",
    }
    for name in names:
        for kind, start in (("pdf", b"%PDF"), ("png", b"\x89PNG")):
            saved = (tmp_path / "here" / f"{name}.{kind}").read_bytes()
            assert saved.startswith(start) and len(saved) > 3_000, name
            if name != "features":  # drawn from arrays, not from results
                assert saved == (tmp_path / "quick" / f"{name}.{kind}").read_bytes(), f"{name}.{kind} differs"


def test_measured_and_published_accuracy_share_axes_only_on_the_same_test_set(claims):
    run, marker = a_run("mamba_mel_small", 0, 0.9), look("mamba_mel_small")["marker"]
    apart = figures.accuracy_against([run], claims).axes
    assert len(apart) == 2 and "synthetic corpus “beeps”" in apart[0].get_ylabel()
    assert [line.get_ydata()[0] for line in apart[0].lines if line.get_marker() == marker] == [90.0]
    claimed = [line.get_ydata()[0] for line in apart[1].lines if line.get_marker() == "x"]
    assert claimed == [float(e["claimed"]["accuracy"]) for e in claims["models"].values() if e["claimed"]["accuracy"]]
    run["labels"], run["test"]["n"] = [str(i) for i in range(35)], claims["v2_35"]["test_clips"]
    assert len(figures.accuracy_against([run], claims).axes) == 2  # synthetic never does
    run["corpus"]["synthetic"] = False
    assert len(figures.accuracy_against([run], claims).axes) == 1


def test_labels_beside_points_do_not_cover_each_other(claims):
    ax = figures.accuracy_against([a_run("mamba_mel_small", 0, 0.9)], claims).axes[1]
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert len(boxes) > 10 and not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_who_lies_far_below_is_named_at_the_end_of_the_axis(claims):
    near, far = a_run("mamba_mel_small", 0, 0.9), a_run("keyword_cnn", 0, 0.56789)
    ax = figures.accuracy_against([near, far], claims).axes[0]
    assert [t.get_text() for t in ax.texts] == ["CNN 56.8"] and ax.get_ylim()[0] == pytest.approx(70)
    ax = figures.accuracy_against([near, a_run("keyword_cnn", 0, 0.8)], claims).axes[0]
    assert not ax.texts and ax.get_ylim()[0] < 75


def test_legends_lie_off_the_curves(results, claims):
    runs, benchmark = load_runs(results), load_benchmark(results)
    for fig in (figures.learning_curves(runs), figures.length_scaling(benchmark["length"])):
        fig.draw_without_rendering()
        legends = fig.legends + [ax.get_legend() for ax in fig.axes if ax.get_legend()]
        assert legends and not any(
            legend.get_window_extent().overlaps(ax.bbox) for legend in legends for ax in fig.axes
        )


def test_confusion_rows_sum_to_the_spoken_word_and_counts_stand_in_cells():
    ax = figures.confusion_matrix(a_run("retnet", 0, 0.9)).axes[0]
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array()).sum(1), 100)
    assert sorted(int(text.get_text()) for text in ax.texts) == [1, 2, 3, 17, 18, 19]


@pytest.mark.parametrize(
    "kind, n_mels, shapes",
    [
        ("mel", 128, ["(B, 63, 128)", "(B, 32, 31, 64)", "(B, 31, 2048)", "(B, 31, 192)", "(B, 192)", "(B, 12)"]),
        ("mfcc", 40, ["(B, 63, 40)", "(B, 63, 192)", "(B, 63, 384)", "(B, 192)", "(B, 12)"]),
    ],
)
def test_architecture_shapes_follow_from_its_arguments(kind, n_mels, shapes):
    (ax,) = diagrams.architecture(192, 5, n_mels, n_classes=12, kind=kind).axes
    texts = [text.get_text() for text in ax.texts]
    assert set(shapes) <= set(texts) and "Mamba block\n× 5" in texts


def test_captions_name_corpus_clips_and_machine(drawn, claims):
    for name in ("accuracy_parameters", "accuracy_macs", "confusion"):
        assert "synthetic corpus “beeps”" in drawn[name][1] and "n = 60" in drawn[name][1]
    assert "n = 40" in drawn["learning_curves"][1] and "synthetic" in drawn["learning_curves"][1]
    assert "Test_CPU" in drawn["latency"][1] and "TestGPU" in drawn["latency_gpu"][1]
    assert set(figures.paper_figures([], claims)) == {"architecture"} and figures.timing_figures(None) == {}


def test_no_two_models_share_colour_and_marker():
    looks = [look(model) for model in MODELS]
    assert len({(one["color"], one["marker"]) for one in looks}) == len(looks)
    assert len({one["label"] for one in looks}) == len(looks)
    new = look("somebody_elses")
    assert new["label"] == "somebody_elses" and new["color"] not in {one["color"] for one in looks}


def test_labels_of_far_models_stay_apart_and_inside(claims):
    from matplotlib.text import Text

    far = [a_run(model, 0, 0.3) for model in ("mobilenet_v2_035", "mobilenet_v2_075", "keyword_cnn")]
    for run, macs in zip(far, (9e6, 15e6, 30e6)):
        run["macs"] = macs
    ax = figures.accuracy_against([a_run("mamba_mel_small", 0, 0.9), *far], claims, "macs").axes[0]
    ax.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the arrow
    assert len(boxes) == 3 and not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(ax.bbox.x0 < box.x0 and box.x1 < ax.bbox.x1 for box in boxes)
