"""From a Choice to a Correction, wherever the statistics come from."""

import numpy as np

from dbnorm_jax._src.core.types import Correction
from dbnorm_jax._src.corrections.table import TABLE, Source
from dbnorm_jax._src.tuning.choice import Choice
from dbnorm_jax._src.tuning.grid import COLUMNS, arguments


def fit_chosen(choice: Choice, source: Source) -> Correction:
    """The correction that was chosen, if it is not raw; `choice` is concrete."""
    method, row = TABLE[choice.name], int(choice.chosen)
    columns = {name: np.asarray(getattr(choice, name))[row].item() for name in COLUMNS}
    fitted: Correction = method.fit(source, **arguments(method, columns))
    return fitted
