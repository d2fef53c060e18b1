"""Training that starts from trained weights: what is taken over, what learns, and what is refused."""

import pytest
import torch

import kwslib
from kwslib.checkpoint import read_checkpoint, start_from
from kwslib.io import KwsError
from kwslib.training import train
from kwslib.training.optim import make_optimizer


def config_of(**values):
    return kwslib.load_config("mamba_light", background_snr=None, **values)


def parts(labels, **values):
    config = config_of(**values)
    return kwslib.build(config.model, len(labels)), kwslib.checkpoint.frontend_of(config), labels


def test_all_weights_but_the_last_layer_are_taken_where_the_labels_are_others():
    weights, _ = read_checkpoint("mamba_light")
    model, frontend, labels = parts(["lights", "music"])
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    given, normalise = start_from("mamba_light", model, frontend, labels)
    own = model.state_dict()
    left = own.keys() - given
    assert left and all(torch.equal(own[k], fresh[k]) for k in left)
    assert {own[k].shape[0] for k in left} == {2}, "only what has a row for each label is left as it was"
    assert all(torch.equal(own[k], weights[k]) for k in given)
    assert normalise.mean == read_checkpoint("mamba_light")[1]["normalisation"]["mean"]


def test_the_last_layer_is_taken_only_with_the_same_labels_in_the_same_order():
    weights, card = read_checkpoint("mamba_light")
    model, frontend, _ = parts(card["labels"])
    assert start_from("mamba_light", model, frontend, card["labels"])[0] == weights.keys()
    model, frontend, _ = parts(card["labels"])
    assert start_from("mamba_light", model, frontend, card["labels"][::-1])[0] < weights.keys()


@pytest.mark.parametrize("change, told", [({"hop_length": 200}, "hop_length 160"), ({"n_mels": 40}, "n_mels 64")])
def test_other_features_are_refused_by_the_key(change, told):
    with pytest.raises(KwsError, match=f"mamba_light was trained with {told}"):
        start_from("mamba_light", *parts(["a", "b"], **change))


def test_another_model_is_refused():
    config = kwslib.load_config("bc_resnet_1", background_volume=None)
    model = kwslib.build("bc_resnet_1", 2)
    with pytest.raises(KwsError, match="init mamba_light is a mamba_light, which does not fit"):
        start_from("mamba_light", model, kwslib.checkpoint.frontend_of(config), ["a", "b"])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_init_lr_is_the_share_of_the_rate_at_which_given_weights_learn(share):
    model, frontend, labels = parts(["a", "b"])
    given, _ = start_from("mamba_light", model, frontend, labels)
    config = config_of(init="mamba_light", init_lr=share)
    optimizer = make_optimizer(model, config, torch.device("cpu"), given)
    shares = {id(p): g.get("share", 1) for g in optimizer.param_groups for p in g["params"]}
    for name, p in model.named_parameters():
        assert shares.get(id(p), 0) == (share if name in given else 1), name
        assert p.requires_grad == (name not in given or share > 0)


def test_a_training_from_trained_weights_moves_the_head_alone_where_the_body_stays(corpus, tmp_path):
    config = config_of(
        corpus=corpus, out=tmp_path / "run", init="mamba_light", init_lr=0.0, epochs=1, batch_size=8, ema=0.0
    )
    card = train(config, progress=False)
    weights, _ = read_checkpoint(tmp_path / "run")
    start, _ = read_checkpoint("mamba_light")
    body = [
        k for k, v in start.items() if v.shape == weights[k].shape and "running" not in k and "num_batches" not in k
    ]
    assert len(body) > 20 and all(torch.equal(weights[k], start[k]) for k in body)
    assert card["recipe"]["init"] == "mamba_light" and len(card["labels"]) == 3
