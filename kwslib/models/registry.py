"""Every model by its name."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from kwslib.io import KwsError
from kwslib.models.ensemble import Ensemble

MODELS = {}  # name: Model, filled by `register`
MOST = 16  # members of an ensemble


@dataclass(frozen=True)
class Model:
    """make(n_classes=35, **options) builds it with fresh weights; features: "mel" or "mfcc", what it reads; label and
    short: its name in tables and figures; options: what `make` takes beside n_classes, with its defaults."""

    make: Callable
    features: str
    label: str
    short: str
    options: dict


def register(name, *, features, label, short=None, passes_to=None, **defaults):
    """Decorate a class or function (n_classes=35, option=…) to be model `name`; several names may share one.

    defaults: options in which this model differs from the signature. passes_to: the class whose keyword arguments
    are options, too, where the function takes them as `**more`."""

    def add(make):
        if name in MODELS:
            raise KwsError(f"model {name!r} is registered twice; give one of the two another name")
        options = _defaults(make) | (_defaults(passes_to) if passes_to else {}) | defaults
        options.pop("n_classes", None)
        made = functools.partial(make, **defaults) if defaults else make
        MODELS[name] = Model(made, features, label, short or label, options)
        return make

    return add


def _defaults(make):
    return {k: p.default for k, p in inspect.signature(make).parameters.items() if p.default is not p.empty}


def build(name, n_classes=35, members=1, **options):
    """Model `name` of MODELS with fresh weights; options such as d_model override its own. members: so many of it in
    one, an Ensemble.

    Raises KwsError for an unknown name or option, and for values that no model can be built with."""
    if type(members) is not int or not 1 <= members <= MOST:
        raise KwsError(f"model {name!r} cannot have members={members!r}; give a whole number from 1 to {MOST}")
    if members > 1:
        return Ensemble([build(name, n_classes, **options) for _ in range(members)])
    if name not in MODELS:
        raise KwsError(f"model {name!r} is unknown; it must be one of {', '.join(MODELS)}")
    model = MODELS[name]
    if unknown := [k for k in options if k not in model.options]:
        allowed = f"its options are {', '.join([*model.options, 'members'])}"
        raise KwsError(f"model {name!r} has no option {unknown[0]!r}; {allowed}")
    try:
        return model.make(n_classes=n_classes, **options)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        if not options:
            raise
        values = ", ".join(f"{k}={v!r}" for k, v in options.items())
        raise KwsError(f"model {name!r} cannot be built with {values}: {error}") from error


def features_of(name):
    """Kind of features, "mel" or "mfcc", that model `name` reads."""
    if name not in MODELS:
        raise KwsError(f"model {name!r} is unknown; it must be one of {', '.join(MODELS)}")
    return MODELS[name].features
