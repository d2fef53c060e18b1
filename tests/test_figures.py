"""Figures: what they show is in the result files, labels are readable, and each model has a look of its own."""

import os
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from small_results import a_benchmark, a_folder, a_run

from kwslib.models.registry import MODELS
from paper import figures
from paper.diagrams import architecture, feature_pipeline
from paper.figure_style import look, save_figure
from paper.results import load_benchmark, load_claims, load_runs

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def claims():
    return load_claims()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two seeds of one Mamba, one of MobileNetV2 with a better validation accuracy, timings of two models."""
    runs = [a_run("mamba_mel_small", 0, 0.90), a_run("mamba_mel_small", 1, 0.94), a_run("mobilenet_v2_035", 0, 0.95)]
    return a_folder(tmp_path_factory.mktemp("results") / "quick", runs, a_benchmark(gpu=True))


@pytest.fixture(scope="module")
def drawn(results, claims):
    rng = np.random.default_rng(0)
    mel, power = rng.normal(size=(63, 128)), rng.random((63, 1_025))
    features = feature_pipeline(rng.normal(size=16_000), power, mel, mel, np.zeros_like(mel))
    every = figures.paper_figures(load_runs(results), claims) | figures.timing_figures(load_benchmark(results))
    return every | {"features": (features, "")}


def test_every_model_has_a_look_of_its_own():
    looks = {model: look(model) for model in [*MODELS, "my_model", "another_model"]}
    for a, b in combinations(looks, 2):
        assert looks[a]["color"] != looks[b]["color"], (a, b)
        assert (looks[a]["marker"], looks[a]["linestyle"]) != (looks[b]["marker"], looks[b]["linestyle"]), (a, b)
    assert looks["my_model"]["label"] == "my_model" and looks["bc_resnet_1"]["label"] == MODELS["bc_resnet_1"].short


def test_every_figure_is_saved_as_pdf_and_png_the_same_bytes_in_every_process(results, drawn, tmp_path):
    code = (
        "import sys; from paper import figures, results, writing; folder, out = sys.argv[1:]; "
        "drawn = figures.paper_figures(results.load_runs(folder), results.load_claims()); "
        "drawn |= figures.timing_figures(results.load_benchmark(folder)); "
        "writing.write_report({}, drawn, out, out + '/quick')"
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
    run = a_run("mamba_mel_small", 0, 0.9)
    apart = figures.accuracy_against([run], claims).axes
    assert len(apart) == 2 and "synthetic corpus “beeps”" in apart[0].get_ylabel()
    assert [
        line.get_ydata()[0] for line in apart[0].lines if line.get_marker() == look("mamba_mel_small")["marker"]
    ] == [90.0]
    claimed = [line.get_ydata()[0] for line in apart[1].lines if line.get_marker() == "x"]
    assert claimed == [
        float(e["claimed"]["accuracy"]) for e in claims["models"].values() if e["claimed"] and e["claimed"]["accuracy"]
    ]
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
        for ax in fig.axes:
            assert not ax.get_legend() or not ax.get_legend().get_window_extent().overlaps(ax.bbox)
        assert any(ax.get_legend() for ax in fig.axes)


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
    (ax,) = architecture(192, 5, n_mels, n_classes=12, kind=kind).axes
    texts = [text.get_text() for text in ax.texts]
    assert set(shapes) <= set(texts) and "Mamba block\n× 5" in texts


def test_captions_name_corpus_clips_and_machine(drawn, claims):
    for name in ("accuracy_parameters", "accuracy_macs", "confusion"):
        assert "synthetic corpus “beeps”" in drawn[name][1] and "n = 60" in drawn[name][1]
    assert "n = 40" in drawn["learning_curves"][1] and "synthetic" in drawn["learning_curves"][1]
    assert "Test_CPU" in drawn["latency"][1] and "TestGPU" in drawn["latency_gpu"][1]
    assert set(figures.paper_figures([], claims)) == {"architecture"} and figures.timing_figures(None) == {}
