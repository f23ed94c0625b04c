"""Which artifacts of a bundle may answer by their numerics class: what is left out, why, and what lets it in.

The rule of a model is what its catalog entry says; else what its recipe declared, which the manifest has; else `full`.
"""

from __future__ import annotations

from enginehouse.contract.config import ModelConfig
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.manifest import FORMAT_OF, Artifact, EngineKind, Manifest, NumericsRule


def rule_of(config: ModelConfig, manifest: Manifest) -> NumericsRule:
    """The rule of a model in the catalog."""
    return config.numerics or manifest.numerics


def is_servable(artifact: Artifact) -> bool:
    """Whether it was verified, or is where it is first loaded."""
    return artifact.status in ("ready", "unverified")


def admits(rule: NumericsRule, artifact: Artifact) -> bool:
    """Whether an artifact of this numerics class may answer."""
    return rule in ("any", artifact.numerics_class)


def left_out(manifest: Manifest, rule: NumericsRule) -> str:
    """Which servable artifacts the rule leaves out, why, and the option that lets them in; "" when it leaves none."""
    names = [one.name for one in manifest.artifacts if is_servable(one) and not admits(rule, one)]
    if not names:
        return ""
    other = "int8" if rule == "full" else "full"
    return (
        f"{', '.join(names)} left out: numerics {rule!r} is what answers; "
        f"`--numerics {other}` or `--numerics any` lets {'it' if len(names) == 1 else 'them'} in"
    )


def check(manifest: Manifest, rule: NumericsRule) -> None:
    """Raise ConfigError, with what there is, when no servable artifact may answer."""
    servable = [artifact for artifact in manifest.artifacts if is_servable(artifact)]
    if any(admits(rule, artifact) for artifact in servable):
        return
    id_ = f"{manifest.name}@{manifest.version}"
    have = ", ".join(f"{artifact.name} ({artifact.numerics_class})" for artifact in servable) or "none that is verified"
    others = " or ".join(f"`--numerics {name}`" for name in dict.fromkeys(one.numerics_class for one in servable))
    raise ConfigError(
        f"{id_} has no artifact of the numerics class {rule!r}; it has {have}: "
        + (f"say {others}, or build it with another precision" if others else "build it again")
    )


def why_nothing(manifest: Manifest, kind: EngineKind, rule: NumericsRule) -> str:
    """Why an engine of this kind has nothing to load."""
    reasons = []
    for artifact in manifest.artifacts:
        if artifact.format != FORMAT_OF[kind]:
            continue
        if is_servable(artifact):
            reasons.append(f"{artifact.name} is of the numerics class {artifact.numerics_class!r} and not {rule!r}")
        else:
            reasons.append(
                f"{artifact.name} is {artifact.status}" + (f" ({artifact.reason})" if artifact.reason else "")
            )
    return "; ".join(reasons) or f"the bundle has no {FORMAT_OF[kind]} artifact"
