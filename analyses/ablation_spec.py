"""A file that names ablations: sets of sites, how to ablate them, and what to measure."""

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from analyses.references import MeanOver
from analyses.report.seeds import check_n_prompts
from interp.validated import unknown_key, validated
from tasks.errors import InputError

NamedMethod = Literal["zero", "mean", "resample"]
NamedMetric = Literal["loss", "accuracy", "excess_risk", "logit_diff", "prob", "kl"]


@validated
class AblationSet:
    """One named ablation: its sites are ablated together.

    Attributes:
        name: what the report calls it.
        sites: as ``Site.parse`` reads them, ``L1H0`` or ``L0.mlp`` say.
        method, over, metric, by: as in ``analyses.ablate``.
        reference_seed: draws other prompts for a mean or for resampling; missing: the measured prompts themselves.
    """

    described_as: ClassVar[str] = "an ablation"

    name: str
    sites: tuple[str, ...]
    method: NamedMethod = "mean"
    over: MeanOver = "batch"
    metric: tuple[NamedMetric, ...] = ("loss",)
    by: str | None = None
    reference_seed: int | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("an ablation's name is empty: give it one, the report needs it")
        if not self.sites:
            raise InputError(f"ablation {self.name!r} has no sites: name at least one, L1H0 say")
        if not self.metric:
            raise InputError(f"ablation {self.name!r} has no metric: name at least one, loss say")
        if self.method == "zero" and self.reference_seed is not None:
            raise InputError(f"ablation {self.name!r}: method zero takes no reference, drop reference_seed")


@validated
class AblationSpec:
    """All that the file says.

    Attributes:
        ablation: the sets, in the file's order.
        n_prompts: how many fresh prompts to measure on.
        seed: draws them, with the run's eval_seed.
    """

    described_as: ClassVar[str] = "the file of ablations"

    ablation: tuple[AblationSet, ...]
    n_prompts: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ablation:
            raise InputError("the file has no [[ablation]]: write at least one")
        check_n_prompts(self.n_prompts)
        if self.seed < 0:
            raise InputError(f"seed = {self.seed}: expected a whole number of at least 0")
        names = [one.name for one in self.ablation]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two ablations are called {name!r}: give each its own name")


def read_ablation_spec(path: Path) -> AblationSpec:
    """The ablations that a TOML file names.

    Raises:
        InputError: no such file, no TOML, a key or value that does not exist; the message says where.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name a TOML file of ablations") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML file: {error}") from None
    for key in table:
        if key not in (known := [field.name for field in fields(AblationSpec)]):
            raise InputError(f"{path}: {unknown_key(key, 'the file', known)}")
    sets = table.get("ablation", [])
    if not isinstance(sets, list):
        raise InputError(f"{path}: [ablation] is one table: write [[ablation]], so that there can be several")
    return _made(
        str(path), AblationSpec, table | {"ablation": tuple(_set(path, k, one) for k, one in enumerate(sets, 1))}
    )


def _set(path: Path, number: int, table: Any) -> AblationSet:
    if not isinstance(table, dict):
        raise InputError(f"{path}, ablation {number}: expected a table under [[ablation]]")
    if "over" in table and (method := table.get("method", AblationSet.method)) != "mean":
        raise InputError(
            f"{path}, ablation {number}: over = {table['over']!r} has no effect with method = {method!r}: drop over"
        )
    if isinstance(table.get("metric"), str):
        table = table | {"metric": (table["metric"],)}
    if isinstance(table.get("sites"), str):
        table = table | {"sites": (table["sites"],)}
    return _made(f"{path}, ablation {number}", AblationSet, table)


def _made(where: str, cls: Any, fields_of: dict[str, Any]) -> Any:
    try:
        return cls(**fields_of)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
