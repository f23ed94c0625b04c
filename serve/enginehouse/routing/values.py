"""What a client hears whose request has values for which no artifact that may answer it is right."""

from __future__ import annotations

from collections.abc import Iterable

from enginehouse.contract.bounds import described
from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.manifest import ENGINE_KINDS, FORMAT_OF, Artifact
from enginehouse.routing.policy import BackendState, Demand, unfit
from enginehouse.routing.view import ModelVersion, View


def refused(version: ModelVersion, view: View, live: Iterable[BackendState], demand: Demand) -> InvalidInput | None:
    """The error if the values of the request are why no backend, live or not, could ever answer it; else None."""
    if demand.values is None or view.could_answer(version, demand):
        return None
    of_any_values = demand._replace(values=None)
    if not view.could_answer(version, of_any_values) and all(unfit(state, of_any_values) for state in live):
        return None
    bounded = [artifact for artifact in _servable(version) if demand.values.beyond(artifact.inputs_only)]
    at_fault = next((place for artifact in bounded if (place := demand.values.place(artifact.inputs_only))), "")
    kinds = "; ".join(f"{artifact.name} answers {described(artifact.inputs_only)} only" for artifact in bounded)
    way_out = _way_out(version, view, demand)
    return InvalidInput(
        f"{at_fault}, for which nothing that may answer {version.config.id!r} is right ({kinds}); {way_out}"
    )


def _way_out(version: ModelVersion, view: View, demand: Demand) -> str:
    assert demand.values is not None
    if view.could_answer(version, demand._replace(pool=None, min_precision="int8")):
        return "leave out the hint that restricts who may answer"
    right = [artifact for artifact in _servable(version) if not demand.values.beyond(artifact.inputs_only)]
    within = [artifact for artifact in right if version.config.numerics in ("any", artifact.numerics_class)]
    if within:
        kinds = " or ".join(kind for kind in ENGINE_KINDS if FORMAT_OF[kind] == within[0].format)
        return f"{within[0].name} of the bundle is right for it: serve it on a pool of {kinds} too"
    if right:
        name, numerics = version.config.id, right[0].numerics_class
        return f"{right[0].name} is right for it: `enginehouse models add {name} --numerics {numerics}`"
    if not any(artifact.format == "onnx" for artifact in _servable(version)):
        return "build the model with `--formats onnx` too, which answers as the reference does"
    return "send other values"


def _servable(version: ModelVersion) -> list[Artifact]:
    return [artifact for artifact in version.manifest.artifacts if artifact.status in ("ready", "unverified")]
